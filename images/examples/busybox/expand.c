/* Words to fields: variables, substitutions, quotes, splitting, names of files. */
#include "sh.h"

#include <ctype.h>
#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>

/* Where a character of a field came from. */
enum class { PLAIN = 'p', QUOTED = 'q', EXPANDED = 'x', BREAK_HERE = 'b' };

struct expansion {
	struct text text, classes; /* of the same length */
	int quotes;                /* "" and '' make a field, though an empty one */
};

static void add(struct expansion *to, const char *bytes, size_t length, enum class class)
{
	char letter = (char)class;
	text_add(&to->text, bytes, length);
	for (size_t i = 0; i < length; i++)
		text_add(&to->classes, &letter, 1);
}

static void add_value(struct expansion *to, const char *value, int quoted)
{
	if (value != NULL)
		add(to, value, strlen(value), quoted ? QUOTED : EXPANDED);
}

static int argument_count(void)
{
	int count = 0;
	while (shell.arguments[0] != NULL && shell.arguments[count + 1] != NULL)
		count++;
	return count;
}

static const char *decimal(long value)
{
	char *text = arena(24), *at = text + 23;
	do
		*--at = (char)('0' + value % 10);
	while (value /= 10);
	return at;
}

/* "$@" makes a field of each argument, anything else one text. */
static void add_arguments(struct expansion *to, int apart, int quoted)
{
	for (int i = 1, count = argument_count(); i <= count; i++) {
		add_value(to, shell.arguments[i], quoted);
		if (i < count)
			add(to, " ", 1, apart ? BREAK_HERE : quoted ? QUOTED : EXPANDED);
	}
}

/* The value of a parameter other than $@ and $*; NULL when it is not set. */
static const char *parameter(const char *name)
{
	if (strcmp(name, "?") == 0)
		return decimal(shell.status);
	if (strcmp(name, "#") == 0)
		return decimal(argument_count());
	if (strcmp(name, "0") == 0)
		return shell.arguments[0];
	if (isdigit((unsigned char)name[0]))
		return atoi(name) <= argument_count() ? shell.arguments[atoi(name)] : NULL;
	return variable(name);
}

/* The length of the parameter's name: a variable, a digit or a special character. */
static size_t parameter_length(const char *at)
{
	size_t length = name_length(at);
	return length > 0 ? length : *at != '\0' && (isdigit((unsigned char)*at) || strchr("?#@*", *at)) ? 1 : 0;
}

static int capture(const void *text)
{
	return run_text(text);
}

/* The output of a command, without the newlines at its end. */
static void add_output(struct expansion *to, const char *command, int quoted)
{
	struct stream memory = stream_of(-1), *outer = standard[1];
	standard[1] = &memory;
	shell.substituted = in_subshell(capture, command);
	standard[1] = outer;
	if (memory.failed)
		complain("$()", strerror(EFBIG));
	while (memory.length > 0 && memory.data[memory.length - 1] == '\n')
		memory.length--;
	if (memory.length > 0)
		add(to, memory.data, memory.length, quoted ? QUOTED : EXPANDED);
	stream_free(&memory);
}

static void add_word(struct expansion *to, const char *word, int quoted);

/* What stands between the braces of ${...}. */
static void add_braced(struct expansion *to, const char *inside, int quoted)
{
	if (inside[0] == '#' && inside[1] != '\0') {
		const char *value = parameter(inside + 1);
		add_value(to, decimal(value == NULL ? 0 : (long)strlen(value)), quoted);
		return;
	}
	size_t length = parameter_length(inside);
	char *name = arena_copy(inside, length);
	const char *rest = inside + length, *value = parameter(name);
	int empty = *rest == ':' && value != NULL && *value == '\0';
	rest += *rest == ':';
	if (*rest == '\0' && (*name == '@' || *name == '*'))
		add_arguments(to, quoted && *name == '@', quoted);
	else if (*rest == '-' && (value == NULL || empty))
		add_word(to, rest + 1, quoted);
	else if (*rest == '+' && value != NULL && !empty)
		add_word(to, rest + 1, quoted);
	else if (*rest == '\0' || *rest == '-')
		add_value(to, value, quoted);
	else if (*rest != '+')
		complain(inside, "not a substitution that this shell knows");
}

/* A $ or a `; the result is what lies behind. */
static const char *add_substitution(struct expansion *to, const char *at, int quoted)
{
	if (*at == '`' || at[1] == '(' || at[1] == '{') {
		const char *end = behind_substitution(at);
		size_t skip = *at == '`' ? 1 : 2;
		if (end == NULL)
			return at + strlen(at);
		char *inside = arena_copy(at + skip, (size_t)(end - at) - skip - 1);
		if (at[0] == '$' && at[1] == '{')
			add_braced(to, inside, quoted);
		else
			add_output(to, inside, quoted);
		return end;
	}
	size_t length = parameter_length(at + 1);
	if (length == 0)
		add(to, at, 1, quoted ? QUOTED : PLAIN);
	else if (at[1] == '@' || at[1] == '*')
		add_arguments(to, quoted && at[1] == '@', quoted);
	else
		add_value(to, parameter(arena_copy(at + 1, length)), quoted);
	return at + 1 + length;
}

static const char *add_single_quoted(struct expansion *to, const char *at)
{
	size_t length = strcspn(at, "'");
	to->quotes = 1;
	add(to, at, length, QUOTED);
	return at + length + (at[length] == '\'');
}

static void add_word(struct expansion *to, const char *at, int quoted)
{
	int inside = quoted;
	while (*at != '\0') {
		if (*at == '"') {
			inside = !inside;
			to->quotes |= inside && strncmp(at, "\"$@\"", 4) != 0;
			at++;
		} else if (*at == '\'' && !inside) {
			at = add_single_quoted(to, at + 1);
		} else if (*at == '$' || *at == '`') {
			at = add_substitution(to, at, inside);
		} else if (*at == '\\' && at[1] != '\0' && (!inside || strchr("\"\\$`\n", at[1]))) {
			if (at[1] != '\n')
				add(to, at + 1, 1, QUOTED);
			at += 2;
		} else {
			add(to, at++, 1, inside ? QUOTED : PLAIN);
		}
	}
}

static struct words **add_field(struct words **end, const char *text, size_t length)
{
	*end = arena(sizeof **end);
	(*end)->text = arena_copy(text, length);
	return &(*end)->next;
}

static int is_pattern(const char *text, const char *classes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		if (classes[i] != QUOTED && strchr("*?[", text[i]))
			return 1;
	return 0;
}

/* One field, or the files that it names as a pattern. */
static struct words **add_files(struct words **end, const char *text, const char *classes, size_t length)
{
	glob_t found;
	struct text pattern = { 0 };
	if (!is_pattern(text, classes, length))
		return add_field(end, text, length);
	for (size_t i = 0; i < length; i++) {
		if (classes[i] == QUOTED)
			text_add(&pattern, "\\", 1);
		text_add(&pattern, text + i, 1);
	}
	if (glob(pattern.text, 0, NULL, &found) != 0)
		return add_field(end, text, length);
	for (size_t i = 0; i < found.gl_pathc; i++)
		end = add_field(end, found.gl_pathv[i], strlen(found.gl_pathv[i]));
	globfree(&found);
	return end;
}

static int splits(const struct expansion *from, size_t i)
{
	char class = from->classes.text[i];
	return class == BREAK_HERE || (class == EXPANDED && strchr(" \t\n", from->text.text[i]));
}

static struct words **split(struct words **end, const struct expansion *from)
{
	size_t length = from->text.length;
	if (length == 0)
		return from->quotes ? add_field(end, "", 0) : end;
	for (size_t start = 0, i = 0; i <= length; i++) {
		if (i < length && !splits(from, i))
			continue;
		/* Blanks beside each other make no field; "$@" makes empty ones too. */
		if (i > start || (i < length && from->classes.text[i] == BREAK_HERE) ||
		    (start > 0 && from->classes.text[start - 1] == BREAK_HERE))
			end = add_files(end, from->text.text + start, from->classes.text + start, i - start);
		start = i + 1;
	}
	return end;
}

struct words *expand(const struct words *words)
{
	struct words *fields = NULL, **end = &fields;
	for (; words != NULL; words = words->next) {
		struct expansion expansion = { 0 };
		add_word(&expansion, words->text, 0);
		end = split(end, &expansion);
	}
	return fields;
}

const char *expand_one(const char *word)
{
	struct expansion expansion = { 0 };
	add_word(&expansion, word, 0);
	return expansion.text.text == NULL ? "" : expansion.text.text;
}
