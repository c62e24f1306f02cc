/* Applets that write text: echo, printf, seq, yes. */
#include "busybox.h"

#include <stdlib.h>
#include <string.h>

/* One escape of echo -e and printf: what lies behind it, or NULL when it says that nothing follows. */
static const char *escape(const char *at)
{
	static const char letters[] = "abefnrtv\\", meanings[] = "\a\b\033\f\n\r\t\v\\";
	const char *known = *at == '\0' ? NULL : strchr(letters, *at);
	char byte = '\\';
	if (*at == 'c')
		return NULL;
	if (known != NULL) {
		byte = meanings[known - letters];
		at++;
	} else if (*at == '0' || *at == 'x') {
		char digits[4] = { 0 }, *end;
		int base = *at == 'x' ? 16 : 8;
		strncpy(digits, at + 1, base == 16 ? 2 : 3);
		byte = (char)strtol(digits, &end, base);
		at += 1 + (end - digits);
	}
	put(standard[1], &byte, 1);
	return at;
}

/* Whether more may follow. */
static int say_escaped(const char *text)
{
	while (text != NULL && *text != '\0') {
		if (*text == '\\')
			text = escape(text + 1);
		else
			put(standard[1], text++, 1);
	}
	return text != NULL;
}

int echo_main(int argc, char **argv)
{
	int newline = 1, escapes = 0, i = 1;
	/* An argument with any other letter in it is text, as everywhere. */
	for (; i < argc && argv[i][0] == '-' && argv[i][1] != '\0' && argv[i][strspn(argv[i] + 1, "neE") + 1] == '\0'; i++)
		for (const char *at = argv[i] + 1; *at != '\0'; at++) {
			newline &= *at != 'n';
			escapes = *at == 'n' ? escapes : *at == 'e';
		}
	for (int first = i; i < argc; i++) {
		if (i > first)
			say(" ");
		if (!escapes)
			say(argv[i]);
		else if (!say_escaped(argv[i]))
			return 0;
	}
	if (newline)
		say("\n");
	return 0;
}

/* One % of printf: the letter, with what it is given. */
static int say_converted(char letter, const char *value)
{
	if (letter == 's') {
		say(value);
	} else if (letter == 'b') {
		say_escaped(value);
	} else if (letter == 'd' || letter == 'i' || letter == 'u') {
		int64_t given = number(value + (*value == '-'));
		if (given < 0)
			return 1;
		say(*value == '-' ? "-" : "");
		say_number((uint64_t)given);
	} else {
		char text[] = { '%', letter, '\0' };
		return complain(text, "unknown conversion");
	}
	return 0;
}

/* The format is used again as long as there are arguments for it. */
int printf_main(int argc, char **argv)
{
	int bad = 0, i = 2;
	if (argc < 2)
		return misused("printf FORMAT [ARGUMENT...]");
	do {
		int before = i;
		for (const char *at = argv[1]; *at != '\0';) {
			if (*at == '\\') {
				if ((at = escape(at + 1)) == NULL)
					return bad;
			} else if (*at != '%' || at[1] == '\0' || at[1] == '%') {
				put(standard[1], at, 1);
				at += 1 + (at[0] == '%' && at[1] == '%');
			} else {
				const char *value = i < argc ? argv[i++] : at[1] == 's' ? "" : "0";
				bad |= say_converted(at[1], value);
				at += 2;
			}
		}
		if (i == before)
			break;
	} while (i < argc);
	return bad;
}

int yes_main(int argc, char **argv)
{
	while (!standard[1]->failed) {
		for (int i = 1; i < argc; i++) {
			say(argv[i]);
			say(i + 1 < argc ? " " : "");
		}
		say(argc > 1 ? "\n" : "y\n");
	}
	return 1;
}

int seq_main(int argc, char **argv)
{
	struct options given;
	int64_t first = 1, last;
	int at = options(argv, "s:", &given), left = argc - at;
	if (at < 0 || left < 1 || left > 2)
		return misused("seq [-s SEPARATOR] [FIRST] LAST");
	if ((last = number(argv[argc - 1])) < 0 || (left == 2 && (first = number(argv[at])) < 0))
		return 1;
	const char *separator = given.value['s'] == NULL ? "\n" : given.value['s'];
	for (; first <= last && !standard[1]->failed; first++) {
		say_number((uint64_t)first);
		say(first < last ? separator : "\n");
	}
	return 0;
}
