/* Standard streams, and what is said on them. */
#include "busybox.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STATUS_SIGPIPE 141

struct stream *standard[3];
extern const char *applet_name;

struct stream stream_of(int fd)
{
	return (struct stream){ .fd = fd };
}

void stream_free(struct stream *stream)
{
	free(stream->data);
	if (stream->fd > 2)
		close(stream->fd);
}

/*
 * Writes all, or marks the stream. Elsewhere a write without a reader ends the process by SIGPIPE; here
 * nobody sends that signal, so the program ends itself, with the status of one that it ended.
 */
static void write_all(struct stream *stream, const char *bytes, size_t length)
{
	while (length > 0 && !stream->failed) {
		ssize_t done = write(stream->fd, bytes, length);
		if (done >= 0) {
			bytes += done;
			length -= (size_t)done;
		} else if (errno == EPIPE) {
			_Exit(STATUS_SIGPIPE);
		} else if (errno != EINTR) {
			stream->failed = errno;
		}
	}
}

static void grow(struct stream *stream, size_t wanted)
{
	if (wanted <= stream->capacity)
		return;
	size_t capacity = stream->capacity * 2 < wanted ? wanted : stream->capacity * 2;
	stream->data = must(realloc(stream->data, capacity));
	stream->capacity = capacity;
}

static void put_in_memory(struct stream *stream, const void *bytes, size_t length)
{
	if (length > MEMORY_BYTES_MAX - stream->length) {
		length = MEMORY_BYTES_MAX - stream->length;
		stream->failed = EPIPE;
	}
	grow(stream, stream->length + length);
	memcpy(stream->data + stream->length, bytes, length);
	stream->length += length;
}

void put(struct stream *stream, const void *bytes, size_t length)
{
	if (stream->failed || length == 0)
		return;
	if (stream->fd < 0) {
		put_in_memory(stream, bytes, length);
		return;
	}
	if (stream->length + length > BUFFER_BYTES)
		flush(stream);
	if (length > BUFFER_BYTES) {
		write_all(stream, bytes, length);
		return;
	}
	grow(stream, BUFFER_BYTES);
	memcpy(stream->data + stream->length, bytes, length);
	stream->length += length;
}

int flush(struct stream *stream)
{
	if (stream->fd >= 0) {
		write_all(stream, stream->data, stream->length);
		stream->length = 0;
	}
	return stream->failed ? -1 : 0;
}

/* Memory that its writer could not fill with everything must not be taken for the whole. */
static ssize_t take_from_memory(struct stream *stream, void *into, size_t length)
{
	size_t left = stream->length - stream->position;
	if (left == 0 && stream->failed) {
		errno = EFBIG;
		return -1;
	}
	if (length > left)
		length = left;
	if (length > 0)
		memcpy(into, stream->data + stream->position, length);
	stream->position += length;
	return (ssize_t)length;
}

ssize_t take(void *into, size_t length)
{
	struct stream *stream = standard[0];
	if (stream->fd < 0)
		return take_from_memory(stream, into, length);
	/* A dialogue: what was asked has to be seen before the answer. */
	flush(standard[1]);
	ssize_t got;
	do
		got = read(stream->fd, into, length);
	while (got < 0 && errno == EINTR);
	return got;
}

void say(const char *text)
{
	put(standard[1], text, strlen(text));
}

void say_padded(uint64_t value, int width, char with)
{
	char digits[24];
	size_t at = sizeof digits;
	do
		digits[--at] = (char)('0' + value % 10);
	while (value /= 10);
	while ((int)(sizeof digits - at) < width)
		digits[--at] = with;
	put(standard[1], digits + at, sizeof digits - at);
}

void say_number(uint64_t value)
{
	say_padded(value, 1, ' ');
}

int complain(const char *what, const char *why)
{
	const char *parts[] = { applet_name, what, why };
	flush(standard[1]);
	for (int i = 0; i < 3; i++) {
		if (parts[i] == NULL)
			continue;
		if (i > 0)
			put(standard[2], ": ", 2);
		put(standard[2], parts[i], strlen(parts[i]));
	}
	put(standard[2], "\n", 1);
	flush(standard[2]);
	return 1;
}

int failed(const char *what)
{
	return complain(what, strerror(errno));
}

int misused(const char *usage)
{
	complain("usage", usage);
	return 2;
}
