/* Memory: the arena, and what ends the program when there is none. */
#include "busybox.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_BYTES 16384
#define ALIGNMENT 8

struct chunk {
	struct chunk *below;
	size_t used, size;
	_Alignas(ALIGNMENT) char bytes[];
};

static struct chunk *top;

void *must(void *memory)
{
	static const char words[] = "busybox: out of memory\n";
	if (memory != NULL)
		return memory;
	(void)!write(2, words, sizeof words - 1);
	_Exit(1);
}

struct mark arena_mark(void)
{
	return (struct mark){ top, top == NULL ? 0 : top->used };
}

void arena_release(struct mark mark)
{
	while (top != mark.chunk) {
		struct chunk *below = top->below;
		free(top);
		top = below;
	}
	if (top != NULL)
		top->used = mark.used;
}

void *arena(size_t bytes)
{
	bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	if (top == NULL || top->size - top->used < bytes) {
		size_t size = bytes > CHUNK_BYTES ? bytes : CHUNK_BYTES;
		struct chunk *chunk = must(malloc(sizeof *chunk + size));
		*chunk = (struct chunk){ .below = top, .size = size };
		top = chunk;
	}
	void *memory = top->bytes + top->used;
	top->used += bytes;
	memset(memory, 0, bytes);
	return memory;
}

char *arena_copy(const char *text, size_t length)
{
	char *copy = arena(length + 1);
	memcpy(copy, text, length);
	return copy;
}

char *joined(const char *folder, const char *name)
{
	size_t length = strlen(folder), behind = strlen(name);
	char *path = arena(length + behind + 2);
	memcpy(path, folder, length);
	if (length == 0 || folder[length - 1] != '/')
		path[length++] = '/';
	memcpy(path + length, name, behind);
	return path;
}

void text_add(struct text *text, const char *bytes, size_t length)
{
	if (text->length + length + 1 > text->capacity) {
		size_t capacity = (text->length + length + 1) * 2;
		char *larger = arena(capacity);
		if (text->length > 0)
			memcpy(larger, text->text, text->length);
		text->text = larger;
		text->capacity = capacity;
	}
	if (length > 0)
		memcpy(text->text + text->length, bytes, length);
	text->length += length;
	text->text[text->length] = '\0';
}
