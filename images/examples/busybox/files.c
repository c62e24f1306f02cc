/* Applets that change the file system: mkdir, rm, sync, touch. */
#include "busybox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEPTH_MAX 64

static int touch(const char *path)
{
	if (utimensat(AT_FDCWD, path, NULL, 0) == 0)
		return 0;
	int fd = errno == ENOENT ? open(path, O_WRONLY | O_CREAT, 0666) : -1;
	return fd < 0 || close(fd) < 0 ? failed(path) : 0;
}

int touch_main(int argc, char **argv)
{
	int status = 0;
	if (argc < 2)
		return misused("touch FILE...");
	while (*++argv != NULL)
		status |= touch(*argv);
	return status;
}

/* Of the files that are named: nothing else of this program's is unwritten. */
int sync_main(int argc, char **argv)
{
	int status = 0;
	(void)argc;
	while (*++argv != NULL) {
		int fd = open(*argv, O_RDONLY);
		if (fd < 0 || fsync(fd) < 0)
			status |= failed(*argv);
		if (fd >= 0)
			close(fd);
	}
	return status;
}

static int is_directory(const char *path)
{
	struct stat status;
	return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static int make_path(const char *path)
{
	char *whole = arena_copy(path, strlen(path));
	for (char *at = whole + 1; *at != '\0'; at++) {
		if (*at != '/')
			continue;
		*at = '\0';
		if (mkdir(whole, 0777) < 0 && !is_directory(whole))
			return failed(whole);
		*at = '/';
	}
	return mkdir(whole, 0777) < 0 && !is_directory(whole) ? failed(path) : 0;
}

int mkdir_main(int argc, char **argv)
{
	struct options given;
	int first = options(argv, "p", &given), status = 0;
	if (first < 0 || first >= argc)
		return misused("mkdir [-p] DIRECTORY...");
	for (char **at = argv + first; *at != NULL; at++)
		status |= given.value['p'] ? make_path(*at) : mkdir(*at, 0777) < 0 ? failed(*at) : 0;
	return status;
}

struct names {
	const char *name;
	struct names *next;
};

/* All of them before the first is removed: a directory that changes while it is read may lose some. */
static struct names *names_in(DIR *directory)
{
	struct names *list = NULL;
	struct dirent *entry;
	while ((entry = readdir(directory)) != NULL) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		struct names *name = arena(sizeof *name);
		*name = (struct names){ arena_copy(entry->d_name, strlen(entry->d_name)), list };
		list = name;
	}
	return list;
}

static int remove_tree(const char *path, int depth)
{
	struct stat status;
	if (lstat(path, &status) < 0)
		return failed(path);
	if (!S_ISDIR(status.st_mode))
		return unlink(path) < 0 ? failed(path) : 0;
	if (depth > DEPTH_MAX) {
		errno = ELOOP;
		return failed(path);
	}
	DIR *directory = opendir(path);
	if (directory == NULL)
		return failed(path);
	struct names *names = names_in(directory);
	closedir(directory);
	int bad = 0;
	for (; names != NULL; names = names->next)
		bad |= remove_tree(joined(path, names->name), depth + 1);
	return bad || rmdir(path) < 0 ? (bad ? 1 : failed(path)) : 0;
}

static int is_root(const char *path)
{
	struct stat status, root;
	return stat(path, &status) == 0 && stat("/", &root) == 0 && status.st_ino == root.st_ino &&
	       status.st_dev == root.st_dev;
}

int rm_main(int argc, char **argv)
{
	struct options given;
	struct stat seen;
	int first = options(argv, "rRf", &given), status = 0;
	if (first < 0 || (first >= argc && !given.value['f']))
		return misused("rm [-rf] FILE...");
	int whole = given.value['r'] || given.value['R'];
	for (char **at = argv + first; *at != NULL; at++) {
		if (given.value['f'] && lstat(*at, &seen) < 0 && errno == ENOENT)
			continue;
		if (whole && is_root(*at))
			status |= complain(*at, "is the root");
		else
			status |= whole ? remove_tree(*at, 0) : unlink(*at) < 0 ? failed(*at) : 0;
	}
	return status;
}
