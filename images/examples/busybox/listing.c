/* Applets that look at files and the clock: date, ls, stat. WASI tells neither mode nor owner of a file. */
#include "busybox.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static const struct kind {
	mode_t format;
	char letter;
	const char *words;
} kinds[] = {
	{ S_IFREG, '-', "regular file" },
	{ S_IFDIR, 'd', "directory" },
	{ S_IFLNK, 'l', "symbolic link" },
	{ S_IFCHR, 'c', "character special file" },
	{ S_IFBLK, 'b', "block special file" },
	{ 0, '?', "unknown" },
};

static const struct kind *kind_of(const struct stat *status)
{
	const struct kind *kind = kinds;
	while (kind->format != 0 && kind->format != (status->st_mode & S_IFMT))
		kind++;
	return kind;
}

/* In UTC, as there is no other time zone here. */
static void say_time(time_t at, const char *end)
{
	struct tm tm;
	if (gmtime_r(&at, &tm) == NULL)
		return;
	const struct { int value, width; const char *behind; } parts[] = {
		{ tm.tm_year + 1900, 4, "-" }, { tm.tm_mon + 1, 2, "-" }, { tm.tm_mday, 2, " " },
		{ tm.tm_hour, 2, ":" }, { tm.tm_min, 2, ":" }, { tm.tm_sec, 2, end },
	};
	for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
		say_padded((uint64_t)parts[i].value, parts[i].width, '0');
		say(parts[i].behind);
	}
}

int date_main(int argc, char **argv)
{
	time_t now = time(NULL);
	if (argc == 2 && strcmp(argv[1], "+%s") == 0) {
		say_number((uint64_t)now);
		say("\n");
		return 0;
	}
	if (argc > 1)
		return misused("date [+%s]");
	say_time(now, " UTC\n");
	return 0;
}

/* Where a link leads, in the arena. */
static const char *target_of(const char *path)
{
	char *target = arena(4096);
	ssize_t length = readlink(path, target, 4095);
	return length < 0 ? "?" : target;
}

static int show(const char *path, const char *name, const struct options *given)
{
	struct stat status;
	if (!given->value['l']) {
		say(name);
		say("\n");
		return 0;
	}
	if (lstat(path, &status) < 0)
		return failed(path);
	put(standard[1], &kind_of(&status)->letter, 1);
	say(" ");
	say_padded(status.st_nlink, 3, ' ');
	say(" ");
	say_padded((uint64_t)status.st_size, 10, ' ');
	say(" ");
	say_time(status.st_mtim.tv_sec, " ");
	say(name);
	if (S_ISLNK(status.st_mode)) {
		say(" -> ");
		say(target_of(path));
	}
	say("\n");
	return 0;
}

static int by_name(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

static int hidden(const char *name, const struct options *given)
{
	if (given->value['a'] || name[0] != '.')
		return 0;
	return !given->value['A'] || strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int list(const char *path, const struct options *given)
{
	char **names = NULL;
	size_t count = 0;
	int status = 0;
	struct dirent *entry;
	DIR *directory = opendir(path);
	if (directory == NULL)
		return failed(path);
	while ((entry = readdir(directory)) != NULL) {
		if (hidden(entry->d_name, given))
			continue;
		names = must(realloc(names, (count + 1) * sizeof *names));
		names[count++] = must(strdup(entry->d_name));
	}
	closedir(directory);
	if (count > 0)
		qsort(names, count, sizeof *names, by_name);
	for (size_t i = 0; i < count; i++) {
		struct mark mark = arena_mark();
		status |= show(joined(path, names[i]), names[i], given);
		arena_release(mark);
		free(names[i]);
	}
	free(names);
	return status;
}

int ls_main(int argc, char **argv)
{
	static char *here[] = { ".", NULL };
	struct options given;
	struct stat seen;
	int first = options(argv, "aAdl1", &given), status = 0;
	if (first < 0)
		return 2;
	int several = argc - first > 1;
	for (char **at = first < argc ? argv + first : here; *at != NULL; at++) {
		if (stat(*at, &seen) < 0 && lstat(*at, &seen) < 0) {
			status |= failed(*at);
		} else if (!S_ISDIR(seen.st_mode) || given.value['d']) {
			status |= show(*at, *at, &given);
		} else {
			if (several) {
				say(*at);
				say(":\n");
			}
			status |= list(*at, &given);
		}
	}
	return status;
}

/* One % of `stat -c`. */
static void say_field(char letter, const char *path, const struct stat *status)
{
	switch (letter) {
	case 'n': say(path); break;
	case 's': say_number((uint64_t)status->st_size); break;
	case 'F': say(kind_of(status)->words); break;
	case 'h': say_number(status->st_nlink); break;
	case 'i': say_number(status->st_ino); break;
	case 'Y': say_number((uint64_t)status->st_mtim.tv_sec); break;
	case 'y': say_time(status->st_mtim.tv_sec, ""); break;
	case '%': say("%"); break;
	default: say("?");
	}
}

int stat_main(int argc, char **argv)
{
	struct options given;
	int first = options(argv, "c:L", &given), bad = 0;
	if (first < 0 || first >= argc)
		return misused("stat [-L] [-c FORMAT] FILE...");
	const char *format = given.value['c'] ? given.value['c'] : "%n: %F, %s bytes, %h links, inode %i, modified %y";
	for (char **at = argv + first; *at != NULL; at++) {
		struct stat status;
		if ((given.value['L'] ? stat : lstat)(*at, &status) < 0) {
			bad |= failed(*at);
			continue;
		}
		for (const char *each = format; *each != '\0'; each++) {
			if (*each == '%' && each[1] != '\0')
				say_field(*++each, *at, &status);
			else
				put(standard[1], each, 1);
		}
		say("\n");
	}
	return bad;
}
