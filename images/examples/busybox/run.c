/* Tree to status. */
#include "sh.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct shell shell;

int in_subshell(int (*body)(const void *), const void *data)
{
	struct shell outer = shell;
	struct variables kept = variables_copy();
	char *cwd = getcwd(NULL, 0);
	shell.loops = 0;
	shell.depth++;
	int status = body(data);
	if (cwd != NULL && chdir(cwd) < 0)
		failed(cwd);
	free(cwd);
	variables_replace(kept);
	shell = outer;
	return status;
}

static int run_tree(const void *tree)
{
	return run(tree);
}

/* A file that a command has open as one of its streams. */
struct opened {
	struct stream stream;
	struct opened *next;
};

static int flags_of(enum direction direction)
{
	return direction == READ     ? O_RDONLY
	       : direction == APPEND ? O_WRONLY | O_CREAT | O_APPEND
				     : O_WRONLY | O_CREAT | O_TRUNC;
}

static int redirect(const struct redirect *each, struct opened **files)
{
	const char *target = expand_one(each->word);
	flush(standard[1]);
	if (each->direction == SAME_AS) {
		if (strlen(target) != 1 || *target < '0' || *target > '2')
			return complain(target, "not a descriptor of this shell");
		standard[each->fd] = standard[*target - '0'];
		return 0;
	}
	int fd = open(target, flags_of(each->direction), 0666);
	if (fd < 0)
		return failed(target);
	struct opened *file = arena(sizeof *file);
	*file = (struct opened){ stream_of(fd), *files };
	*files = file;
	standard[each->fd] = &file->stream;
	return 0;
}

static int with_redirects(const struct node *node, int (*body)(const struct node *))
{
	struct stream *outer[3];
	struct opened *files = NULL;
	int status = 0;
	if (node->redirects == NULL)
		return body(node);
	memcpy(outer, standard, sizeof standard);
	for (const struct redirect *each = node->redirects; each != NULL && status == 0; each = each->next)
		status = redirect(each, &files);
	if (status == 0)
		status = body(node);
	flush(standard[1]);
	memcpy(standard, outer, sizeof standard);
	for (; files != NULL; files = files->next)
		stream_free(&files->stream);
	return status;
}

/* A path is run when it leads to this program. */
static const struct applet *applet_of(const char *name)
{
	char target[256];
	const char *slash = strrchr(name, '/');
	if (slash == NULL)
		return applet_named(name);
	ssize_t length = readlink(name, target, sizeof target - 1);
	if (length < 0)
		return strcmp(slash + 1, "busybox") == 0 && access(name, F_OK) == 0 ? applet_named("busybox") : NULL;
	target[length] = '\0';
	const char *base = strrchr(target, '/');
	return strcmp(base == NULL ? target : base + 1, "busybox") == 0 ? applet_named(slash + 1) : NULL;
}

static int cannot_run(const char *name)
{
	if (strchr(name, '/') != NULL && access(name, F_OK) == 0) {
		complain(name, "WASI cannot start another program");
		return STATUS_NOT_RUNNABLE;
	}
	complain(name, "not found");
	return STATUS_NOT_FOUND;
}

int call(int argc, char **argv)
{
	applet_main *builtin = builtin_named(argv[0]);
	if (builtin != NULL)
		return builtin(argc, argv);
	const struct applet *applet = applet_of(argv[0]);
	return applet == NULL ? cannot_run(argv[0]) : applet_run(applet, argc, argv);
}

static int call_fields(const struct words *fields)
{
	int argc = 0;
	for (const struct words *at = fields; at != NULL; at = at->next)
		argc++;
	char **argv = arena(((size_t)argc + 1) * sizeof *argv);
	for (char **to = argv; fields != NULL; fields = fields->next)
		*to++ = arena_copy(fields->text, strlen(fields->text));
	return call(argc, argv);
}

static int is_assignment(const char *word)
{
	size_t length = name_length(word);
	return length > 0 && word[length] == '=';
}

static void assign(const char *word, int exported)
{
	size_t length = name_length(word);
	variable_set(arena_copy(word, length), expand_one(word + length + 1), exported);
}

/* Assignments alone last; before a command they are its environment only. */
static int run_simple(const struct node *node)
{
	const struct words *words = node->words;
	int assignments = 0;
	for (; words != NULL && is_assignment(words->text); words = words->next)
		assignments++;
	shell.substituted = 0;
	struct words *fields = expand(words);
	struct variables outer = { 0 };
	if (fields != NULL && assignments > 0)
		outer = variables_copy();
	for (const struct words *at = node->words; at != words; at = at->next)
		assign(at->text, fields != NULL);
	if (fields == NULL)
		return shell.substituted;
	int status = call_fields(fields);
	if (assignments > 0)
		variables_replace(outer);
	return status;
}

static int run_pipe(const struct node *node)
{
	struct stream memory = stream_of(-1), *output = standard[1], *input = standard[0];
	standard[1] = &memory;
	in_subshell(run_tree, node->left);
	standard[1] = output;
	standard[0] = &memory;
	int status = in_subshell(run_tree, node->right);
	standard[0] = input;
	stream_free(&memory);
	return status;
}

/* Whether the loop goes on; nobody reading its output ends it. */
static int goes_on(void)
{
	if (shell.leaving == CONTINUE)
		shell.leaving = STAY;
	if (shell.leaving == BREAK) {
		shell.leaving = STAY;
		return 0;
	}
	return shell.leaving == STAY && !standard[1]->failed;
}

/* The status of a condition: -e does not end a shell for it. */
static int test(const struct node *node)
{
	shell.tested++;
	int status = run(node);
	shell.tested--;
	return status;
}

static int run_while(const struct node *node)
{
	int status = 0, wanted = node->kind == UNTIL;
	shell.loops++;
	for (;;) {
		struct mark mark = arena_mark();
		int condition = test(node->left);
		int enter = shell.leaving == STAY && (condition != 0) == wanted;
		if (enter)
			status = run(node->right);
		arena_release(mark);
		if (!goes_on() || !enter)
			break;
	}
	shell.loops--;
	return shell.leaving == EXIT ? shell.status : status;
}

static int run_for(const struct node *node)
{
	int status = 0;
	struct words *fields = expand(node->words);
	shell.loops++;
	for (; fields != NULL; fields = fields->next) {
		struct mark mark = arena_mark();
		variable_set(node->name, fields->text, 0);
		status = run(node->right);
		arena_release(mark);
		if (!goes_on())
			break;
	}
	shell.loops--;
	return status;
}

static int run_body(const struct node *node)
{
	int left;
	switch (node->kind) {
	case SIMPLE: return run_simple(node);
	case PIPE: return run_pipe(node);
	case GROUP: return run(node->left);
	case SUBSHELL: return in_subshell(run_tree, node->left);
	case FOR: return run_for(node);
	case WHILE:
	case UNTIL: return run_while(node);
	case NOT: return !test(node->left);
	default: break;
	}
	left = test(node->left);
	if (shell.leaving != STAY)
		return left;
	switch (node->kind) {
	case AND: return left == 0 ? run(node->right) : left;
	case OR: return left != 0 ? run(node->right) : left;
	default: return left == 0 ? run(node->right) : node->otherwise == NULL ? 0 : run(node->otherwise);
	}
}

int run(const struct node *tree)
{
	for (; tree != NULL && tree->kind == SEQUENCE; tree = tree->right) {
		run(tree->left);
		if (shell.leaving != STAY)
			return shell.status;
	}
	if (tree == NULL)
		return shell.status;
	int status = with_redirects(tree, run_body);
	if (shell.leaving == EXIT)
		return shell.status;
	int plain = tree->kind == SIMPLE || tree->kind == PIPE || tree->kind == SUBSHELL;
	if (status != 0 && plain && shell.exits_on_failure && shell.tested == 0)
		shell.leaving = EXIT;
	return shell.status = status;
}

int run_text(const char *text)
{
	if (shell.depth > DEPTH_MAX)
		return shell.status = complain("too many shells in shells", NULL);
	for (shell.status = 0; shell.leaving != EXIT;) {
		struct mark mark = arena_mark();
		struct node *tree = NULL;
		const char *word = NULL;
		enum parsed parsed = parse(&text, &tree, &word);
		if (parsed == PARSED)
			run(tree);
		else if (parsed != PARSED_END)
			complain("syntax error", parsed == PARSED_INCOMPLETE ? "unexpected end" : word);
		arena_release(mark);
		if (parsed == PARSED_END)
			break;
		if (parsed != PARSED)
			return shell.status = STATUS_SYNTAX;
	}
	return shell.status;
}
