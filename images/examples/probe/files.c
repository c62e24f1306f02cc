/* Subcommands about the file system. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "probe.h"

#define NAMES_MAX 4096

static int put(const char *path, const char *text, int flags)
{
	int fd = open(path, O_WRONLY | O_CREAT | flags, 0644);
	if (fd < 0 || write_all(fd, text, strlen(text)) < 0 || close(fd) < 0)
		return failed(path);
	return 0;
}

int run_write(char **arguments)
{
	return put(arguments[0], arguments[1], O_TRUNC);
}

int run_append(char **arguments)
{
	return put(arguments[0], arguments[1], O_APPEND);
}

int run_read(char **arguments)
{
	int fd = open(arguments[0], O_RDONLY);
	if (fd < 0)
		return failed(arguments[0]);
	return copy(fd, 1, arguments[0]);
}

static int by_name(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

/* The type of a directory entry or file, as one letter of ls. */
static const char *letter(mode_t mode)
{
	return S_ISDIR(mode) ? "d " : S_ISLNK(mode) ? "l " : S_ISREG(mode) ? "f " : "? ";
}

int run_stat(char **arguments)
{
	struct stat status;
	if (lstat(arguments[0], &status) < 0)
		return failed(arguments[0]);
	say(1, letter(status.st_mode));
	if (S_ISREG(status.st_mode)) {
		say_number(1, (uint64_t)status.st_size);
		say(1, " ");
	}
	say(1, arguments[0]);
	say(1, "\n");
	return 0;
}

int run_ls(char **arguments)
{
	static char *names[NAMES_MAX];
	size_t count = 0;
	struct dirent *entry;
	DIR *directory = opendir(arguments[0]);
	if (directory == NULL)
		return failed(arguments[0]);
	while (count < NAMES_MAX && (entry = readdir(directory)) != NULL)
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			names[count++] = strdup(entry->d_name);
	closedir(directory);
	qsort(names, count, sizeof names[0], by_name);
	return run_args(names);
}

int run_mkdir(char **arguments)
{
	return mkdir(arguments[0], 0755) < 0 ? failed(arguments[0]) : 0;
}

int run_rm(char **arguments)
{
	return remove(arguments[0]) < 0 ? failed(arguments[0]) : 0;
}

int run_mv(char **arguments)
{
	return rename(arguments[0], arguments[1]) < 0 ? failed(arguments[0]) : 0;
}

int run_ln(char **arguments)
{
	return symlink(arguments[0], arguments[1]) < 0 ? failed(arguments[1]) : 0;
}

/* The name of file number `number` of `run_many` in `directory`. */
static const char *numbered(const char *directory, uint64_t number)
{
	static char path[PATH_BYTES_MAX];
	if (strlen(directory) + 32 > sizeof path)
		_Exit(2);
	strcpy(path, directory);
	strcat(path, "/file-");
	strcat(path, decimal(number));
	return path;
}

static int check_numbered(const char *path, uint64_t number)
{
	char text[32] = { 0 };
	int fd = open(path, O_RDONLY);
	if (fd < 0 || read(fd, text, sizeof text - 1) < 0 || close(fd) < 0)
		return failed(path);
	if (strcmp(text, decimal(number)) == 0)
		return 0;
	errno = EIO;
	return failed(path);
}

/* Creates N files in DIR, reads each back, removes them. */
int run_many(char **arguments)
{
	uint64_t count = strtoull(arguments[1], NULL, 10);
	int bad = 0;
	for (uint64_t i = 0; i < count && !bad; i++) {
		char text[24];
		strcpy(text, decimal(i));
		bad = put(numbered(arguments[0], i), text, O_TRUNC | O_EXCL);
	}
	for (uint64_t i = 0; i < count && !bad; i++)
		bad = check_numbered(numbered(arguments[0], i), i);
	for (uint64_t i = 0; i < count && !bad; i++)
		if (unlink(numbered(arguments[0], i)) < 0)
			bad = failed("unlink");
	if (bad)
		return bad;
	say_number(1, count);
	say(1, " files written, read and removed\n");
	return 0;
}

/* Counts what lies below a directory, the directory itself included. */
static int walk(const char *path, uint64_t *count)
{
	struct dirent *entry;
	int bad = 0;
	DIR *directory = opendir(path);
	if (directory == NULL)
		return failed(path);
	++*count;
	while (!bad && (entry = readdir(directory)) != NULL) {
		struct stat status;
		char below[PATH_BYTES_MAX];
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		if (strlen(path) + strlen(entry->d_name) + 2 > sizeof below)
			_Exit(2);
		strcpy(below, path);
		strcat(below, "/");
		strcat(below, entry->d_name);
		if (fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0)
			bad = failed(below);
		else if (S_ISDIR(status.st_mode))
			bad = walk(below, count);
		else
			++*count;
	}
	closedir(directory);
	return bad;
}

int run_walk(char **arguments)
{
	uint64_t count = 0, times = strtoull(arguments[1], NULL, 10);
	for (uint64_t i = 0; i < times; i++)
		if (walk(arguments[0], &count) != 0)
			return 1;
	say_number(1, count);
	say(1, " seen\n");
	return 0;
}
