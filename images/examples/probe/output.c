/* Output without printf, which would double the module. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"

int write_all(int fd, const void *data, size_t length)
{
	const char *at = data;
	while (length > 0) {
		ssize_t written = write(fd, at, length);
		if (written < 0)
			return -1;
		at += written;
		length -= (size_t)written;
	}
	return 0;
}

void say(int fd, const char *text)
{
	if (write_all(fd, text, strlen(text)) < 0)
		_Exit(1);
}

const char *decimal(uint64_t value)
{
	static char digits[24];
	char *at = digits + sizeof digits - 1;
	do {
		*--at = (char)('0' + value % 10);
		value /= 10;
	} while (value != 0);
	return at;
}

void say_number(int fd, uint64_t value)
{
	say(fd, decimal(value));
}

void say_hex(int fd, const unsigned char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		char pair[3] = { "0123456789abcdef"[bytes[i] >> 4], "0123456789abcdef"[bytes[i] & 15], 0 };
		say(fd, pair);
	}
	say(fd, "\n");
}

int failed(const char *what)
{
	int error = errno;
	say(2, "probe: ");
	say(2, what);
	say(2, ": ");
	say(2, strerror(error));
	say(2, "\n");
	return 1;
}
