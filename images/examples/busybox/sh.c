/* sh: where the commands come from: -c, a file, or standard input with or without a terminal. */
#include "sh.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static int run_file(const char *path)
{
	struct text text = { 0 };
	char block[4096];
	ssize_t got;
	int fd = open(path, O_RDONLY);
	if (fd < 0) {
		failed(path);
		return STATUS_NOT_FOUND;
	}
	while ((got = read(fd, block, sizeof block)) > 0)
		text_add(&text, block, (size_t)got);
	close(fd);
	return got < 0 ? failed(path) : run_text(text.text == NULL ? "" : text.text);
}

static void prompt(const char *text)
{
	flush(standard[1]);
	put(standard[2], text, strlen(text));
	flush(standard[2]);
}

/* Runs what was read, unless more has to be read before it is whole. */
static enum parsed run_input(const char *text)
{
	enum parsed parsed;
	for (;;) {
		struct node *tree = NULL;
		const char *word = NULL;
		parsed = parse(&text, &tree, &word);
		if (parsed == PARSED_BAD) {
			complain("syntax error", word);
			shell.status = STATUS_SYNTAX;
		}
		if (parsed != PARSED)
			return parsed;
		run(tree);
		if (shell.leaving == EXIT)
			return PARSED_END;
	}
}

static int run_standard_input(int interactive)
{
	struct mark mark = arena_mark();
	struct text text = { 0 };
	enum parsed parsed = PARSED_END;
	while (shell.leaving != EXIT) {
		if (interactive)
			prompt(parsed == PARSED_INCOMPLETE ? "> " : "$ ");
		const char *line = read_line();
		if (line == NULL)
			break;
		text_add(&text, line, strlen(line));
		parsed = run_input(text.text);
		if (parsed == PARSED_INCOMPLETE)
			continue;
		if (parsed == PARSED_BAD && !interactive)
			break;
		arena_release(mark);
		text = (struct text){ 0 };
	}
	if (shell.leaving == EXIT)
		return shell.status;
	if (interactive)
		prompt("\n");
	if (parsed == PARSED_INCOMPLETE) {
		complain("syntax error", "unexpected end");
		return STATUS_SYNTAX;
	}
	return shell.status;
}

static int run_shell(const void *data)
{
	char **argv = *(char **const *)data;
	struct options given;
	int first = options(argv, "eic:", &given);
	if (first < 0)
		return misused("sh [-ei] [-c COMMANDS | FILE] [ARGUMENT...]");
	/* $0 is the name after -c's text, the file, or the shell. */
	static char *nameless[] = { "sh", NULL };
	shell.leaving = STAY;
	shell.status = shell.tested = 0;
	shell.exits_on_failure = given.value['e'] != NULL;
	shell.arguments = argv[first] == NULL ? nameless : argv + first;
	if (given.value['c'])
		return run_text(given.value['c']);
	if (argv[first] != NULL)
		return run_file(argv[first]);
	return run_standard_input(given.value['i'] || (standard[0]->fd == 0 && isatty(0)));
}

int sh_main(int argc, char **argv)
{
	(void)argc;
	return in_subshell(run_shell, &argv);
}
