/* Applets that read text: cat, grep, head, wc. */
#include "busybox.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char block[65536];

/* A file to read; a directory can be opened here, and then fails with a misleading reason. */
static int open_file(const char *path)
{
	struct stat status;
	int fd = open(path, O_RDONLY);
	if (fd >= 0 && fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
		close(fd);
		errno = EISDIR;
		return -1;
	}
	return fd;
}

/* Calls `use` with standard input being each file in turn, "-" and none at all being itself. */
static int each_file(char **names, int (*use)(const char *name, void *data), void *data)
{
	static char *only_input[] = { "-", NULL };
	int status = 0;
	for (char **at = *names == NULL ? only_input : names; *at != NULL; at++) {
		if (strcmp(*at, "-") == 0) {
			status |= use(*at, data);
			continue;
		}
		struct stream file = stream_of(open_file(*at)), *outer = standard[0];
		if (file.fd < 0) {
			status |= failed(*at);
			continue;
		}
		standard[0] = &file;
		status |= use(*at, data);
		standard[0] = outer;
		stream_free(&file);
	}
	return status;
}

static int copy(const char *name, void *data)
{
	ssize_t got;
	(void)data;
	while ((got = take(block, sizeof block)) > 0) {
		put(standard[1], block, (size_t)got);
		/* At once: the other end may be somebody who waits for it. */
		if (flush(standard[1]) < 0)
			return 1;
	}
	return got < 0 ? failed(name) : 0;
}

int cat_main(int argc, char **argv)
{
	struct options given;
	(void)argc;
	int first = options(argv, "u", &given);
	return first < 0 ? 2 : each_file(argv + first, copy, NULL);
}

struct wanted {
	int64_t lines, bytes; /* -1: not asked for */
	int several, begun;
};

static int head_of(const char *name, void *data)
{
	const struct wanted *wanted = data;
	int64_t lines = wanted->lines, bytes = wanted->bytes;
	ssize_t got = 0;
	if (wanted->several) {
		say(((struct wanted *)data)->begun++ ? "\n==> " : "==> ");
		say(name);
		say(" <==\n");
	}
	while (bytes < 0 ? lines > 0 : bytes > 0) {
		/* By lines one byte at a time: what follows them is for who reads next. */
		size_t most = bytes < 0 ? 1 : bytes < (int64_t)sizeof block ? (size_t)bytes : sizeof block;
		if ((got = take(block, most)) <= 0)
			break;
		put(standard[1], block, (size_t)got);
		bytes -= bytes < 0 ? 0 : got;
		lines -= block[0] == '\n';
	}
	return got < 0 ? failed(name) : 0;
}

int head_main(int argc, char **argv)
{
	struct options given;
	struct wanted wanted = { .lines = 10, .bytes = -1 };
	int first = options(argv, "n:c:", &given);
	if (first < 0)
		return 2;
	if (given.value['n'] && (wanted.lines = number(given.value['n'])) < 0)
		return 1;
	if (given.value['c'] && (wanted.bytes = number(given.value['c'])) < 0)
		return 1;
	wanted.several = argc - first > 1;
	return each_file(argv + first, head_of, &wanted);
}

static int count(const char *name, void *data)
{
	const struct options *given = data;
	uint64_t lines = 0, words = 0, bytes = 0;
	int inside = 0, all = !given->value['l'] && !given->value['w'] && !given->value['c'];
	ssize_t got;
	while ((got = take(block, sizeof block)) > 0) {
		bytes += (uint64_t)got;
		for (ssize_t i = 0; i < got; i++) {
			int space = isspace((unsigned char)block[i]);
			lines += block[i] == '\n';
			words += !space && !inside;
			inside = !space;
		}
	}
	if (got < 0)
		return failed(name);
	const struct { int asked; uint64_t value; } columns[] = {
		{ all || given->value['l'], lines }, { all || given->value['w'], words }, { all || given->value['c'], bytes },
	};
	const char *between = "";
	for (size_t i = 0; i < 3; i++) {
		if (!columns[i].asked)
			continue;
		say(between);
		say_number(columns[i].value);
		between = " ";
	}
	if (strcmp(name, "-") != 0) {
		say(" ");
		say(name);
	}
	say("\n");
	return 0;
}

int wc_main(int argc, char **argv)
{
	struct options given;
	(void)argc;
	int first = options(argv, "lwc", &given);
	return first < 0 ? 2 : each_file(argv + first, count, &given);
}

struct search {
	regex_t pattern;
	struct options given;
	int several;
	uint64_t found;
};

static void found(struct search *search, const char *name, const char *line)
{
	search->found++;
	if (search->given.value['q'] || search->given.value['c'])
		return;
	if (search->several) {
		say(name);
		say(":");
	}
	say(line);
	say("\n");
}

static void search_line(struct search *search, const char *name, const char *line)
{
	int matches = regexec(&search->pattern, line, 0, NULL, 0) == 0;
	if (matches == !search->given.value['v'])
		found(search, name, line);
}

static int search_in(const char *name, void *data)
{
	struct mark mark = arena_mark();
	struct text line = { 0 };
	ssize_t got;
	while ((got = take(block, sizeof block)) > 0) {
		for (char *at = block, *end; at < block + got; at = end + 1) {
			end = memchr(at, '\n', (size_t)(block + got - at));
			text_add(&line, at, (size_t)((end == NULL ? block + got : end) - at));
			if (end == NULL)
				break;
			search_line(data, name, line.text);
			line.length = 0;
		}
	}
	if (line.length > 0)
		search_line(data, name, line.text);
	arena_release(mark);
	return got < 0 ? failed(name) : 0;
}

int grep_main(int argc, char **argv)
{
	struct search search = { 0 };
	int first = options(argv, "Ecivq", &search.given);
	if (first < 0 || first >= argc)
		return misused("grep [-Ecivq] PATTERN [FILE...]");
	int flags = REG_NOSUB | (search.given.value['E'] ? REG_EXTENDED : 0) | (search.given.value['i'] ? REG_ICASE : 0);
	if (regcomp(&search.pattern, argv[first], flags) != 0) {
		complain(argv[first], "not a regular expression");
		return 2;
	}
	search.several = argc - first > 2;
	int status = each_file(argv + first + 1, search_in, &search);
	regfree(&search.pattern);
	if (search.given.value['c']) {
		say_number(search.found);
		say("\n");
	}
	return status ? 2 : search.found == 0;
}
