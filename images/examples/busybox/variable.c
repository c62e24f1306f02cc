/* Variables: the environment as it came, and what the shell made of it. */
#include "busybox.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct variables variables;

size_t name_length(const char *text)
{
	size_t length = 0;
	if (isdigit((unsigned char)text[0]))
		return 0;
	while (isalnum((unsigned char)text[length]) || text[length] == '_')
		length++;
	return length;
}

static struct variable *find(const char *name)
{
	for (size_t i = 0; i < variables.count; i++)
		if (strcmp(variables.list[i].name, name) == 0)
			return &variables.list[i];
	return NULL;
}

const char *variable(const char *name)
{
	struct variable *found = find(name);
	return found == NULL ? NULL : found->value;
}

static void add(struct variables *to, const char *name, const char *value, int exported)
{
	to->list = must(realloc(to->list, (to->count + 1) * sizeof *to->list));
	to->list[to->count++] = (struct variable){ must(strdup(name)), must(strdup(value)), exported };
}

void variable_set(const char *name, const char *value, int exported)
{
	struct variable *found = find(name);
	if (found == NULL) {
		add(&variables, name, value, exported);
		return;
	}
	char *copy = must(strdup(value));
	free(found->value);
	found->value = copy;
	found->exported |= exported;
}

void variable_unset(const char *name)
{
	struct variable *found = find(name);
	if (found == NULL)
		return;
	free(found->name);
	free(found->value);
	struct variable *last = &variables.list[--variables.count];
	memmove(found, found + 1, (size_t)((char *)last - (char *)found));
}

void variables_from(char **environment)
{
	for (; *environment != NULL; environment++) {
		char *copy = must(strdup(*environment));
		char *equals = strchr(copy, '=');
		if (equals != NULL) {
			*equals = '\0';
			variable_set(copy, equals + 1, 1);
		}
		free(copy);
	}
}

struct variables variables_copy(void)
{
	struct variables copy = { 0 };
	for (size_t i = 0; i < variables.count; i++)
		add(&copy, variables.list[i].name, variables.list[i].value, variables.list[i].exported);
	return copy;
}

void variables_replace(struct variables with)
{
	for (size_t i = 0; i < variables.count; i++) {
		free(variables.list[i].name);
		free(variables.list[i].value);
	}
	free(variables.list);
	variables = with;
}
