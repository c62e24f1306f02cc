/* Options of a command line, as POSIX wants them: letters, together or apart, before the operands. */
#include "busybox.h"

#include <ctype.h>
#include <string.h>

static int unknown(char letter)
{
	char text[] = { '-', letter, '\0' };
	complain(text, "unknown option");
	return -1;
}

int options(char **argv, const char *letters, struct options *given)
{
	*given = (struct options){ 0 };
	for (int i = 1; argv[i] != NULL; i++) {
		if (argv[i][0] != '-' || argv[i][1] == '\0')
			return i;
		if (strcmp(argv[i], "--") == 0)
			return i + 1;
		for (const char *at = argv[i] + 1; *at != '\0'; at++) {
			const char *known = *at == ':' ? NULL : strchr(letters, *at);
			if (known == NULL)
				return unknown(*at);
			given->value[(unsigned char)*at & 127] = "";
			if (known[1] != ':')
				continue;
			const char *value = at[1] != '\0' ? at + 1 : argv[++i];
			if (value == NULL) {
				complain("a value is missing", NULL);
				return -1;
			}
			given->value[(unsigned char)*at & 127] = value;
			break;
		}
	}
	int count = 0;
	while (argv[count] != NULL)
		count++;
	return count;
}

int64_t number(const char *text)
{
	int64_t value = 0;
	for (const char *at = text; *at != '\0' || at == text; at++) {
		if (!isdigit((unsigned char)*at) || value > INT64_MAX / 10 - 1) {
			complain(text, "not a number");
			return -1;
		}
		value = value * 10 + (*at - '0');
	}
	return value;
}
