/* test and [. */
#include "busybox.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STATUS_ERROR 2

static int error(const char *what, const char *why)
{
	complain(what, why);
	return STATUS_ERROR;
}

/* 0 and 1 are exit statuses here: 0 is true. */
static int unary(const char *operator, const char *operand)
{
	struct stat status;
	if (operator[0] != '-' || operator[1] == '\0' || operator[2] != '\0')
		return error(operator, "unknown operator");
	switch (operator[1]) {
	case 'n': return *operand == '\0';
	case 'z': return *operand != '\0';
	case 't': return !isatty(atoi(operand));
	case 'e': return stat(operand, &status) < 0;
	case 'f': return stat(operand, &status) < 0 || !S_ISREG(status.st_mode);
	case 'd': return stat(operand, &status) < 0 || !S_ISDIR(status.st_mode);
	case 's': return stat(operand, &status) < 0 || status.st_size == 0;
	case 'h':
	case 'L': return lstat(operand, &status) < 0 || !S_ISLNK(status.st_mode);
	default: return error(operator, "unknown operator");
	}
}

static int compare(const char *left, const char *operator, const char *right)
{
	static const char *const names[] = { "-eq", "-ne", "-lt", "-le", "-gt", "-ge" };
	char *left_end, *right_end;
	long long one = strtoll(left, &left_end, 10), other = strtoll(right, &right_end, 10);
	int results[] = { one == other, one != other, one < other, one <= other, one > other, one >= other };
	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		if (strcmp(operator, names[i]) != 0)
			continue;
		if (*left == '\0' || *left_end != '\0' || *right == '\0' || *right_end != '\0')
			return error(*left == '\0' || *left_end != '\0' ? left : right, "not a number");
		return !results[i];
	}
	return error(operator, "unknown operator");
}

static int evaluate(int count, char **words)
{
	if (count > 1 && strcmp(words[0], "!") == 0) {
		int status = evaluate(count - 1, words + 1);
		return status == STATUS_ERROR ? status : !status;
	}
	if (count == 3 && (strcmp(words[1], "=") == 0 || strcmp(words[1], "==") == 0))
		return strcmp(words[0], words[2]) != 0;
	if (count == 3 && strcmp(words[1], "!=") == 0)
		return strcmp(words[0], words[2]) == 0;
	switch (count) {
	case 0: return 1;
	case 1: return *words[0] == '\0';
	case 2: return unary(words[0], words[1]);
	case 3: return compare(words[0], words[1], words[2]);
	default: return error("too many arguments", NULL);
	}
}

int test_main(int argc, char **argv)
{
	if (strcmp(argv[0], "[") == 0 && strcmp(argv[--argc], "]") != 0)
		return error("]", "missing");
	return evaluate(argc - 1, argv + 1);
}
