/* Applets about the process and its surroundings: env, hostname, id, pgrep, sleep, top, tty, true, false. */
#include "busybox.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define FILE_BYTES_MAX 65536

int true_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	return 0;
}

int false_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	return 1;
}

int env_main(int argc, char **argv)
{
	struct variables outer = variables_copy();
	int i = 1, status = 0;
	for (char *equals; i < argc && (equals = strchr(argv[i], '=')) != NULL; i++)
		variable_set(arena_copy(argv[i], (size_t)(equals - argv[i])), equals + 1, 1);
	const struct applet *applet = i < argc ? applet_named(argv[i]) : NULL;
	if (applet != NULL) {
		status = applet_run(applet, argc - i, argv + i);
	} else if (i < argc) {
		complain(argv[i], "not found");
		status = 127;
	} else {
		for (size_t at = 0; at < variables.count; at++) {
			if (!variables.list[at].exported)
				continue;
			say(variables.list[at].name);
			say("=");
			say(variables.list[at].value);
			say("\n");
		}
	}
	variables_replace(outer);
	return status;
}

/* The start of a file, in the arena; NULL when it cannot be read. */
static char *start_of(const char *path)
{
	int fd = open(path, O_RDONLY);
	if (fd < 0)
		return NULL;
	char *text = arena(FILE_BYTES_MAX + 1);
	ssize_t got = read(fd, text, FILE_BYTES_MAX);
	close(fd);
	return got < 0 ? NULL : text;
}

/* The first line of a file, in the arena; NULL when there is none. */
static const char *first_line(const char *path)
{
	char *text = start_of(path);
	if (text != NULL)
		text[strcspn(text, "\n")] = '\0';
	return text == NULL || *text == '\0' ? NULL : text;
}

/* WASI has no gethostname: what the environment says, or the container's files. */
int hostname_main(int argc, char **argv)
{
	(void)argv;
	if (argc > 1)
		return complain("WASI cannot set the host name", NULL);
	const char *found = variable("HOSTNAME");
	if (found == NULL)
		found = first_line("/etc/hostname");
	if (found == NULL)
		return complain("neither $HOSTNAME nor /etc/hostname tells it", NULL);
	say(found);
	say("\n");
	return 0;
}

/* The name of a number in a file like /etc/passwd, in the arena; NULL when it has none. */
static char *name_of(const char *path, const char *wanted)
{
	char *text = start_of(path);
	while (text != NULL && *text != '\0') {
		char *end = strchr(text, '\n');
		if (end != NULL)
			*end = '\0';
		char *password = strchr(text, ':'), *id = password == NULL ? NULL : strchr(password + 1, ':');
		if (id != NULL && strcspn(id + 1, ":") == strlen(wanted) && strncmp(id + 1, wanted, strlen(wanted)) == 0)
			return arena_copy(text, (size_t)(password - text));
		text = end == NULL ? NULL : end + 1;
	}
	return NULL;
}

static void say_id(const char *label, const char *path, const char *id)
{
	const char *name = name_of(path, id);
	say(label);
	say(id);
	if (name != NULL) {
		say("(");
		say(name);
		say(")");
	}
}

/* The effective id of `label` ("Uid:", "Gid:") in /proc/self/status, in the arena; NULL when it tells none. */
static const char *id_of(const char *label)
{
	char *text = start_of("/proc/self/status"), *at = text == NULL ? NULL : strstr(text, label);
	if (at == NULL)
		return NULL;
	/* Label, real id, effective id. */
	at += strcspn(at, "\t") + 1;
	at += strcspn(at, "\t") + 1;
	return arena_copy(at, strcspn(at, "\t\n"));
}

/*
 * WASI tells a program neither its user nor the owner of any file. The kernel does, where there is a /proc;
 * else the environment's word is all that can be known.
 */
int id_main(int argc, char **argv)
{
	struct options given;
	const char *uid = id_of("Uid:"), *gid = id_of("Gid:");
	(void)argc;
	uid = uid == NULL ? variable("UID") : uid;
	gid = gid == NULL ? variable("GID") : gid;
	if (options(argv, "ugGn", &given) < 0)
		return misused("id [-u|-g|-G] [-n]");
	int group = given.value['g'] || given.value['G'];
	if ((uid == NULL && !group) || (gid == NULL && !given.value['u']))
		return complain("neither /proc/self/status nor UID and GID tell who this runs as", NULL);
	if (!group && !given.value['u']) {
		say_id("uid=", "/etc/passwd", uid);
		say_id(" gid=", "/etc/group", gid);
	} else {
		const char *id = group ? gid : uid;
		const char *name = given.value['n'] ? name_of(group ? "/etc/group" : "/etc/passwd", id) : NULL;
		say(name == NULL ? id : name);
	}
	say("\n");
	return 0;
}

/* No other process can be seen, so none matches. */
int pgrep_main(int argc, char **argv)
{
	(void)argv;
	return argc < 2 ? misused("pgrep PATTERN") : 1;
}

/* Seconds, minutes, hours or days with a fraction; 0 when the text is no time. */
static int time_of(const char *text, struct timespec *time)
{
	uint64_t nanos = 0, seconds = 0, digit = 1000000000;
	const char *at = text;
	for (; isdigit((unsigned char)*at) && seconds < INT32_MAX; at++)
		seconds = seconds * 10 + (uint64_t)(*at - '0');
	if (*at == '.')
		for (at++; isdigit((unsigned char)*at); at++)
			nanos += (uint64_t)(*at - '0') * (digit /= 10);
	int alone = *at == '\0' || at[1] == '\0';
	uint64_t unit = *at == '\0' || *at == 's' ? 1 : *at == 'm' ? 60 : *at == 'h' ? 3600 : *at == 'd' ? 86400 : 0;
	if (!isdigit((unsigned char)at[-(at > text)]) || !alone || unit == 0)
		return 0;
	nanos *= unit;
	time->tv_sec = (time_t)(seconds * unit + nanos / 1000000000);
	time->tv_nsec = (long)(nanos % 1000000000);
	return 1;
}

static void wait_for_ever(void)
{
	struct timespec day = { .tv_sec = 86400 };
	flush(standard[1]);
	for (;;)
		nanosleep(&day, NULL);
}

int sleep_main(int argc, char **argv)
{
	if (argc < 2)
		return misused("sleep SECONDS[smhd]...");
	for (char **at = argv + 1; *at != NULL; at++) {
		struct timespec left;
		if (strcmp(*at, "infinity") == 0 || strcmp(*at, "inf") == 0)
			wait_for_ever();
		if (!time_of(*at, &left))
			return complain(*at, "not a time");
		while (nanosleep(&left, &left) < 0)
			if (errno != EINTR)
				return failed("nanosleep");
	}
	return 0;
}

/* What WASI shows of the machine is this program. It then stays until it is ended, as top does. */
int top_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	say("Processes: 1 (WASI shows a program no other)\n");
	say("COMMAND        MEMORY\ntop      ");
	say_padded(__builtin_wasm_memory_size(0) * 64, 8, ' ');
	say(" KiB\n");
	wait_for_ever();
	return 0;
}

/* The name that stands for the terminal of whoever asks; WASI knows no other. */
int tty_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	int terminal = standard[0]->fd == 0 && isatty(0);
	say(terminal ? "/dev/tty\n" : "not a tty\n");
	return !terminal;
}
