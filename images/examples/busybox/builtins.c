/* Commands that change the shell itself. */
#include "sh.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* `path` from the directory `from`, without . and .. in it, in the arena. */
static char *resolved(const char *from, const char *path)
{
	char *whole = *path == '/' ? arena_copy(path, strlen(path)) : joined(from, path);
	char *end = whole;
	for (char *at = whole; *at != '\0';) {
		at += strspn(at, "/");
		size_t length = strcspn(at, "/");
		if (length == 2 && strncmp(at, "..", 2) == 0) {
			while (end > whole && *--end != '/')
				;
		} else if (length > 0 && !(length == 1 && *at == '.')) {
			*end++ = '/';
			memmove(end, at, length);
			end += length;
		}
		at += length;
	}
	if (end == whole)
		*end++ = '/';
	*end = '\0';
	return whole;
}

static int cd_main(int argc, char **argv)
{
	const char *to = argc > 1 ? argv[1] : variable("HOME");
	if (to == NULL)
		to = "/";
	char *cwd = getcwd(NULL, 0), *path = resolved(cwd == NULL ? "/" : cwd, to);
	free(cwd);
	if (chdir(path) < 0)
		return failed(to);
	variable_set("PWD", path, 1);
	return 0;
}

static int pwd_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	char *cwd = getcwd(NULL, 0);
	if (cwd == NULL)
		return failed("getcwd");
	say(cwd);
	say("\n");
	free(cwd);
	return flush(standard[1]) < 0;
}

static int exit_main(int argc, char **argv)
{
	int64_t status = argc > 1 ? number(argv[1]) : shell.status;
	shell.leaving = EXIT;
	return shell.status = status < 0 ? STATUS_SYNTAX : (int)(status & 255);
}

static int leave_loop(enum leaving how)
{
	if (shell.loops > 0)
		shell.leaving = how;
	return 0;
}

static int break_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	return leave_loop(BREAK);
}

static int continue_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	return leave_loop(CONTINUE);
}

static int export_main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		size_t length = name_length(argv[i]);
		char *name = arena_copy(argv[i], length);
		if (length == 0 || (argv[i][length] != '=' && argv[i][length] != '\0'))
			return complain(argv[i], "not a name");
		const char *value = argv[i][length] == '=' ? argv[i] + length + 1 : variable(name);
		if (value != NULL)
			variable_set(name, value, 1);
	}
	return 0;
}

static int unset_main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		variable_unset(argv[i]);
	return 0;
}

static int shift_main(int argc, char **argv)
{
	(void)argc, (void)argv;
	if (shell.arguments[0] == NULL || shell.arguments[1] == NULL)
		return 1;
	shell.arguments[1] = shell.arguments[0];
	shell.arguments++;
	return 0;
}

/* Instead of the shell: the program runs, and the shell is done. */
static int exec_main(int argc, char **argv)
{
	if (argc < 2)
		return 0;
	shell.leaving = EXIT;
	return shell.status = call(argc - 1, argv + 1);
}

/* A byte at a time: what follows the line is for who reads next. */
char *read_line(void)
{
	struct text line = { 0 };
	char byte;
	while (take(&byte, 1) > 0) {
		text_add(&line, &byte, 1);
		if (byte == '\n')
			break;
	}
	return line.text;
}

static int read_main(int argc, char **argv)
{
	char *line = read_line();
	int ended = line == NULL;
	char *at = ended ? "" : line;
	at[strcspn(at, "\n") * !ended] = ended ? *at : '\0';
	for (int i = 1; i < argc; i++) {
		at += strspn(at, " \t");
		size_t length = i + 1 < argc ? strcspn(at, " \t") : strlen(at);
		variable_set(argv[i], arena_copy(at, length), 0);
		at += length;
	}
	return ended;
}

static const struct applet builtins[] = {
	{ ":", true_main },        { "break", break_main }, { "cd", cd_main },     { "continue", continue_main },
	{ "exec", exec_main },     { "exit", exit_main },   { "export", export_main }, { "pwd", pwd_main },
	{ "read", read_main },     { "shift", shift_main }, { "unset", unset_main },
};

applet_main *builtin_named(const char *name)
{
	for (size_t i = 0; i < sizeof builtins / sizeof builtins[0]; i++)
		if (strcmp(builtins[i].name, name) == 0)
			return builtins[i].run;
	return NULL;
}
