/*
 * files: what a program sees of its container. It reads the file /data/poem.txt that
 * came with the image, lists /data, counts the words of stdin, writes a report into the
 * container's file system and reads it back. An argument is the name of the report.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_MAX 64

struct count {
	long lines, words, bytes;
};

static struct count count(FILE *file)
{
	struct count total = { 0, 0, 0 };
	int inside = 0;
	for (int c; (c = getc(file)) != EOF; total.bytes++) {
		total.lines += c == '\n';
		total.words += !inside && !isspace(c);
		inside = !isspace(c);
	}
	return total;
}

static FILE *open_or_exit(const char *path, const char *mode)
{
	FILE *file = fopen(path, mode);
	if (file == NULL) {
		fprintf(stderr, "files: %s: %s\n", path, strerror(errno));
		exit(1);
	}
	return file;
}

static int by_name(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

static void list(const char *path)
{
	char *names[ENTRIES_MAX];
	size_t count = 0;
	struct dirent *entry;
	DIR *directory = opendir(path);
	if (directory == NULL) {
		fprintf(stderr, "files: %s: %s\n", path, strerror(errno));
		exit(1);
	}
	while (count < ENTRIES_MAX && (entry = readdir(directory)) != NULL)
		if (entry->d_name[0] != '.')
			names[count++] = strdup(entry->d_name);
	closedir(directory);
	qsort(names, count, sizeof names[0], by_name);
	printf("%s holds", path);
	for (size_t i = 0; i < count; i++)
		printf(" %s", names[i]);
	puts("");
}

static void show(const char *path)
{
	char line[256];
	FILE *file = open_or_exit(path, "r");
	while (fgets(line, sizeof line, file) != NULL)
		printf("  %s", line);
	fclose(file);
}

int main(int argc, char **argv)
{
	const char *report = argc > 1 ? argv[1] : "/data/report.txt";
	const char *greeting = getenv("GREETING");

	printf("GREETING is %s\n", greeting == NULL ? "not set" : greeting);
	list("/data");
	show("/data/poem.txt");

	struct count input = count(stdin);
	FILE *file = open_or_exit(report, "w");
	fprintf(file, "stdin: %ld lines, %ld words, %ld bytes\n", input.lines, input.words, input.bytes);
	if (fclose(file) != 0) {
		fprintf(stderr, "files: %s: %s\n", report, strerror(errno));
		return 1;
	}
	printf("wrote %s:\n", report);
	show(report);
	return 0;
}
