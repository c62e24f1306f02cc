/* The table of applets, and which one this call is. */
#include "busybox.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATUS_NO_APPLET 127

extern char **environ;

const char *applet_name = "busybox";

/* Sorted by name. */
const struct applet applets[] = {
	{ "[", test_main },
	{ "busybox", busybox_main },
	{ "cat", cat_main },
	{ "date", date_main },
	{ "echo", echo_main },
	{ "env", env_main },
	{ "false", false_main },
	{ "grep", grep_main },
	{ "head", head_main },
	{ "hostname", hostname_main },
	{ "id", id_main },
	{ "ls", ls_main },
	{ "mkdir", mkdir_main },
	{ "pgrep", pgrep_main },
	{ "printf", printf_main },
	{ "rm", rm_main },
	{ "seq", seq_main },
	{ "sh", sh_main },
	{ "sleep", sleep_main },
	{ "stat", stat_main },
	{ "sync", sync_main },
	{ "test", test_main },
	{ "top", top_main },
	{ "touch", touch_main },
	{ "true", true_main },
	{ "tty", tty_main },
	{ "wc", wc_main },
	{ "yes", yes_main },
	{ NULL, NULL },
};

const struct applet *applet_named(const char *name)
{
	for (const struct applet *each = applets; each->name != NULL; each++)
		if (strcmp(each->name, name) == 0)
			return each;
	return NULL;
}

int applet_run(const struct applet *applet, int argc, char **argv)
{
	const char *outer = applet_name;
	struct mark mark = arena_mark();
	applet_name = applet->name;
	int status = applet->run(argc, argv);
	if (flush(standard[1]) < 0 && standard[1]->fd >= 0 && status == 0)
		status = complain("standard output", strerror(standard[1]->failed));
	arena_release(mark);
	applet_name = outer;
	return status;
}

static int no_applet(const char *name)
{
	complain(name, "no such applet");
	return STATUS_NO_APPLET;
}

int busybox_main(int argc, char **argv)
{
	if (argc > 1) {
		const struct applet *applet = applet_named(argv[1]);
		return applet == NULL ? no_applet(argv[1]) : applet_run(applet, argc - 1, argv + 1);
	}
	say("busybox APPLET [ARGUMENT...], or by a link named as the applet:\n");
	for (const struct applet *each = applets; each->name != NULL; each++) {
		say(each->name);
		say(each[1].name == NULL ? "\n" : " ");
	}
	return 0;
}

static const char *base_of(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash == NULL ? path : slash + 1;
}

int main(int argc, char **argv)
{
	struct stream streams[3] = { stream_of(0), stream_of(1), stream_of(2) };
	for (int i = 0; i < 3; i++)
		standard[i] = &streams[i];
	variables_from(environ);
	/* WASI has no working directory; who starts the program says it by PWD. */
	const char *pwd = variable("PWD");
	if (pwd != NULL && chdir(pwd) < 0)
		failed(pwd);
	const char *name = argc > 0 ? base_of(argv[0]) : "busybox";
	const struct applet *applet = applet_named(name);
	return applet == NULL ? no_applet(name) : applet_run(applet, argc, argv);
}
