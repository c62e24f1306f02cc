/*
 * A guest that has been taken over: PID 1 of a task's VM that speaks the agent's protocol only as far as
 * it takes to do harm. What it does is said by HOSTILE=MODE in the program's environment, so one
 * initramfs serves every test; `modes` at the end lists them.
 *
 * Ports and frames: protocol/src/ports.rs, and ttrpc's 10-byte header (length, stream id, type, flags).
 * What only the kernel of a guest can do (raw FUSE requests, rings, MSRs) is not here but in the guest of
 * its own that the VMM's tests boot.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define AGENT_PORT 1024
#define STREAM_PORT 1025
#define READY_PORT 1024 /* of the host */
#define KMSG_LINES 8 /* in one go, of the ten that the kernel takes */
#define FRAME_BYTES_MAX (4 << 20)
#define STREAM_HEADER_BYTES 16
#define SLOT_ADDRESS (32ULL << 30) /* protocol/src/slot.rs */

enum type { RESPONSE = 2, DATA = 3 };

/* One request of the shim. */
struct request {
	int fd;
	uint32_t stream;
	char method[32];
	char mode[32]; /* of Create */
};

struct mode {
	const char *name;
	void (*create)(const struct request *); /* NULL: as an agent would */
	void (*start)(void);                    /* a process of its own, once the program would run */
	void (*kill)(const struct request *);
	void (*wait)(const struct request *); /* once the program would run; NULL: never answered */
	void (*other)(const struct request *); /* NULL: never answered */
};

static const struct mode *mode;
static int stdout_stream = -1;
static int agent_connection = -1;
static struct request waiting; /* Wait, until it is answered */
static int started;

/* Writes all of it, or ends this process: the host has cut the connection. */
static void put(int fd, const void *bytes, size_t length)
{
	while (length > 0) {
		ssize_t done = write(fd, bytes, length);
		if (done <= 0)
			_exit(1);
		bytes = (const char *)bytes + done;
		length -= (size_t)done;
	}
}

static void put_header(int fd, uint32_t length, uint32_t stream, enum type type)
{
	unsigned char header[10] = {
		(unsigned char)(length >> 24), (unsigned char)(length >> 16), (unsigned char)(length >> 8),
		(unsigned char)length,         (unsigned char)(stream >> 24), (unsigned char)(stream >> 16),
		(unsigned char)(stream >> 8),  (unsigned char)stream,         (unsigned char)type,
	};
	put(fd, header, sizeof header);
}

/* ttrpc's Response: field 1 a status, field 2 the answer. The length as a varint of four bytes. */
static void answer(const struct request *request, int field, const void *bytes, uint32_t length)
{
	unsigned char prefix[5] = {
		(unsigned char)(field << 3 | 2),
		(unsigned char)(length | 0x80),
		(unsigned char)(length >> 7 | 0x80),
		(unsigned char)(length >> 14 | 0x80),
		(unsigned char)(length >> 21 & 0x7f),
	};
	put_header(request->fd, length + sizeof prefix, request->stream, RESPONSE);
	put(request->fd, prefix, sizeof prefix);
	put(request->fd, bytes, length);
}

static void obey(const struct request *request)
{
	answer(request, 2, "", 0);
}

static void ignore(const struct request *request)
{
	(void)request;
}

/* Before the program is loaded. */

static void garbage(const struct request *request)
{
	char bytes[4096];
	memset(bytes, 0xff, sizeof bytes);
	put_header(request->fd, sizeof bytes, request->stream, RESPONSE);
	put(request->fd, bytes, sizeof bytes);
}

/* A refusal of a megabyte of control characters, for a terminal or a log. */
static void long_refusal(const struct request *request)
{
	static char status[1 << 20];
	static const char words[] = "\033[2J\nlevel=error \t";
	const uint32_t text = sizeof status - 6;
	/* Status: field 1 the code (13, internal), field 2 the message. */
	const unsigned char prefix[6] = { 0x08, 13, 0x12, (text & 0x7f) | 0x80, (text >> 7 & 0x7f) | 0x80, text >> 14 & 0x7f };
	memcpy(status, prefix, sizeof prefix);
	for (size_t i = sizeof prefix; i < sizeof status; i++)
		status[i] = words[i % (sizeof words - 1)];
	answer(request, 1, status, sizeof status);
}

/* One byte more than ttrpc allows. */
static void oversized(const struct request *request)
{
	static char bytes[FRAME_BYTES_MAX + 1];
	put_header(request->fd, sizeof bytes, request->stream, RESPONSE);
	put(request->fd, bytes, sizeof bytes);
}

static void endless_frame(const struct request *request)
{
	static char bytes[65536];
	if (fork() != 0)
		return;
	put_header(request->fd, UINT32_MAX, request->stream, RESPONSE);
	for (;;)
		put(request->fd, bytes, sizeof bytes);
}

/* Answers that nobody asked for: large ones, small ones, of every kind. */
static void flood_answers(const struct request *request)
{
	static char bytes[FRAME_BYTES_MAX];
	if (fork() != 0)
		return;
	for (uint32_t i = 0;; i++) {
		uint32_t length = i % 64 == 0 ? sizeof bytes : 1;
		/* Never Create's own stream, which is the first. */
		put_header(request->fd, length, 3 + i, i % 3 == 0 ? RESPONSE : i % 3 == 1 ? DATA : (enum type)0xee);
		put(request->fd, bytes, length);
	}
}

/* While the program would run. */

/* Streams of data as the answer to the requests that wait: Wait's is among the first. */
static void flood_data(void)
{
	static char bytes[65536];
	for (uint32_t i = 0;; i++) {
		put_header(agent_connection, sizeof bytes, 1 + 2 * (i % 8), DATA);
		put(agent_connection, bytes, sizeof bytes);
	}
}

static void flood_stdout(void)
{
	static char bytes[65536];
	memset(bytes, 'x', sizeof bytes);
	for (;;)
		put(stdout_stream, bytes, sizeof bytes);
}

/* The kernel's limit on what /dev/kmsg is given counts for each time it is opened. */
static void flood_console(void)
{
	static const char line[] = "<0>hostile: the console is flooded, line after line after line\n";
	for (;;) {
		int log = open("/kmsg", O_WRONLY);
		if (log < 0)
			_exit(1);
		for (int lines = 0; lines < KMSG_LINES; lines++)
			put(log, line, sizeof line - 1);
		close(log);
	}
}

static int dial(unsigned int port)
{
	struct sockaddr_vm host = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd >= 0)
		(void)connect(fd, (struct sockaddr *)&host, sizeof host);
	return fd;
}

/* Every port of the host, many at a time, for ever. */
static void dial_everything(void)
{
	int open_ones[512];
	memset(open_ones, -1, sizeof open_ones);
	for (unsigned int port = 0;; port++) {
		int *slot = &open_ones[port % 512];
		if (*slot >= 0)
			close(*slot);
		*slot = dial(port);
	}
}

static void hang_up(void)
{
	shutdown(agent_connection, SHUT_RDWR);
}

static void impossible_status(const struct request *request)
{
	/* WaitResponse: field 1 the status, field 2 the time: seconds before the year 1. */
	static const unsigned char response[] = {
		0x08, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x12, 11, 0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1,
	};
	answer(request, 2, response, sizeof response);
}

/* A refusal with a status code of ttrpc's and no words. */
static void refuse(const struct request *request, unsigned char code)
{
	const unsigned char status[] = { 0x08, code };
	answer(request, 1, status, sizeof status);
}

/* "There is no such program": and it goes on. */
static void not_found(const struct request *request)
{
	refuse(request, 5);
}

static void internal(const struct request *request)
{
	refuse(request, 13);
}

/* Each request with the next of the codes 1 to 16. */
static void next_code(const struct request *request)
{
	static unsigned char code;
	code = code % 16 + 1;
	refuse(request, code);
}

/* As large a frame as ttrpc takes, of fields that are small on the wire and large when they are decoded: distinct
 * field numbers, each with the number 1. */
static void unknown_fields(const struct request *request)
{
	static unsigned char fields[FRAME_BYTES_MAX - 16];
	uint32_t length = 0;
	for (uint32_t key = 1024 << 3; length + 8 < sizeof fields; key += 8) {
		for (uint32_t rest = key;; rest >>= 7) {
			fields[length++] = (unsigned char)(rest < 0x80 ? rest : (rest & 0x7f) | 0x80);
			if (rest < 0x80)
				break;
		}
		fields[length++] = 1;
	}
	answer(request, 2, fields, length);
}

/* The same, of processes: two bytes for each. */
static void many_pids(const struct request *request)
{
	static unsigned char processes[FRAME_BYTES_MAX - 16];
	for (size_t i = 0; i + 1 < sizeof processes; i += 2)
		processes[i] = 0x0a;
	answer(request, 2, processes, sizeof processes);
}

/* Says that the program has ended by itself with this status. */
static void say_ended(const struct request *request, unsigned char status)
{
	const unsigned char response[] = { 0x08, status };
	answer(request, 2, response, sizeof response);
}

/* The exit is told, and the program runs on. */
static void early_wait(const struct request *request)
{
	say_ended(request, 0);
	if (fork() == 0)
		for (;;)
			;
}

/* A whiteout is a character device: 0 when none could be made in the task's tree. */
static void fuse_whiteout(const struct request *request)
{
	struct stat at;
	mkdir("/tree", 0700);
	if (mount("root", "/tree", "virtiofs", 0, NULL) < 0 || open("/tree/data/a", O_CREAT | O_WRONLY, 0600) < 0) {
		say_ended(request, 2);
		return;
	}
	syscall(SYS_renameat2, AT_FDCWD, "/tree/data/a", AT_FDCWD, "/tree/data/b", RENAME_WHITEOUT);
	say_ended(request, lstat("/tree/data/a", &at) == 0 && S_ISCHR(at.st_mode));
}

/* The artifact, which other tasks run too. */
static void slot_write(const struct request *request)
{
	mknod("/mem", S_IFCHR | 0600, makedev(1, 1));
	int memory = open("/mem", O_RDWR);
	volatile unsigned char *slot =
		mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, memory, (off_t)SLOT_ADDRESS);
	if (memory < 0 || slot == MAP_FAILED) {
		say_ended(request, 2);
		return;
	}
	for (size_t i = 0; i < 8192; i++)
		slot[i] = (unsigned char)~slot[i];
	/* Not reached: the VM has ended. */
	say_ended(request, 1);
}

static const struct mode modes[] = {
	{ "silent", ignore, NULL, NULL, NULL, NULL },
	{ "garbage", garbage, NULL, NULL, NULL, NULL },
	{ "long-refusal", long_refusal, NULL, NULL, NULL, NULL },
	{ "oversized", oversized, NULL, NULL, NULL, NULL },
	{ "endless-frame", endless_frame, NULL, NULL, NULL, NULL },
	{ "flood-answers", flood_answers, NULL, NULL, NULL, NULL },
	{ "flood-data", NULL, flood_data, ignore, NULL, NULL },
	{ "flood-stdout", NULL, flood_stdout, ignore, NULL, NULL },
	{ "flood-console", NULL, flood_console, ignore, NULL, NULL },
	{ "dial", NULL, dial_everything, ignore, NULL, NULL },
	{ "deaf", NULL, NULL, ignore, NULL, NULL },
	{ "immortal", NULL, NULL, obey, NULL, NULL },
	{ "hang-up", NULL, hang_up, ignore, NULL, NULL },
	{ "impossible-status", NULL, NULL, ignore, impossible_status, NULL },
	{ "kill-not-found", NULL, NULL, not_found, NULL, not_found },
	{ "every-code", NULL, NULL, next_code, NULL, next_code },
	{ "unknown-fields", NULL, NULL, unknown_fields, NULL, unknown_fields },
	{ "many-pids", NULL, NULL, ignore, NULL, many_pids },
	{ "refuse-update", NULL, NULL, obey, NULL, internal },
	{ "early-wait", NULL, NULL, ignore, early_wait, NULL },
	{ "fuse-whiteout", NULL, NULL, ignore, fuse_whiteout, NULL },
	{ "slot-write", NULL, NULL, ignore, slot_write, NULL },
};

static const struct mode *mode_named(const char *name)
{
	for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++)
		if (strcmp(modes[i].name, name) == 0)
			return &modes[i];
	return &modes[0];
}

/* Requests. */

static int take(int fd, void *into, size_t length)
{
	for (size_t have = 0; have < length;) {
		ssize_t got = read(fd, (char *)into + have, length - have);
		if (got <= 0)
			return -1;
		have += (size_t)got;
	}
	return 0;
}

/* What stands behind `label` up to the next control character. */
static void find(const unsigned char *body, size_t length, const char *label, char *into, size_t room)
{
	const unsigned char *at = memmem(body, length, label, strlen(label));
	if (at == NULL)
		return;
	at += strlen(label);
	for (size_t i = 0; i + 1 < room && at + i < body + length && at[i] > ' ' && at[i] < 127; i++)
		into[i] = (char)at[i];
}

static int take_request(int fd, struct request *request)
{
	static unsigned char body[FRAME_BYTES_MAX];
	unsigned char header[10];
	*request = (struct request){ .fd = fd };
	if (take(fd, header, sizeof header) < 0)
		return -1;
	uint32_t length = (uint32_t)header[0] << 24 | header[1] << 16 | header[2] << 8 | header[3];
	request->stream = (uint32_t)header[4] << 24 | header[5] << 16 | header[6] << 8 | header[7];
	if (length > sizeof body || take(fd, body, length) < 0)
		return -1;
	/* Request: field 1 the service, field 2 the method; both are short. */
	size_t service = body[1];
	if (length > service + 4 && body[service + 3] < sizeof request->method)
		memcpy(request->method, body + service + 4, body[service + 3]);
	find(body, length, "HOSTILE=", request->mode, sizeof request->mode);
	return 0;
}

static void handle(const struct request *request)
{
	if (strcmp(request->method, "Create") == 0) {
		mode = mode_named(request->mode);
		agent_connection = request->fd;
		(mode->create ? mode->create : obey)(request);
	} else if (mode == NULL) {
		return;
	} else if (strcmp(request->method, "Start") == 0) {
		obey(request);
		started = 1;
		if (mode->start && fork() == 0) {
			mode->start();
			_exit(0);
		}
	} else if (strcmp(request->method, "Kill") == 0 && mode->kill) {
		mode->kill(request);
	} else if (strcmp(request->method, "Wait") == 0) {
		waiting = *request;
	} else if (mode->other) {
		mode->other(request);
	}
	if (started && waiting.fd > 0 && mode->wait) {
		mode->wait(&waiting);
		waiting.fd = -1;
	}
}

/* The shim says what a stream is before it uses it. */
static void take_stream(int fd)
{
	unsigned char header[STREAM_HEADER_BYTES];
	if (take(fd, header, sizeof header) == 0 && header[4] == 1)
		stdout_stream = fd;
}

static int listener(unsigned int port)
{
	struct sockaddr_vm any = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any) < 0 || listen(fd, 16) < 0)
		_exit(1);
	return fd;
}

int main(void)
{
	struct pollfd watched[16] = { { listener(AGENT_PORT), POLLIN, 0 }, { listener(STREAM_PORT), POLLIN, 0 } };
	nfds_t count = 2;
	mknod("/kmsg", S_IFCHR | 0600, makedev(1, 11));
	dial(READY_PORT);
	while (poll(watched, count, -1) >= 0 || errno == EINTR) {
		if (watched[1].revents)
			take_stream(accept(watched[1].fd, NULL, NULL));
		if (watched[0].revents && count < 16)
			watched[count++] = (struct pollfd){ accept(watched[0].fd, NULL, NULL), POLLIN, 0 };
		for (nfds_t i = 2; i < count; i++) {
			struct request request;
			if (!watched[i].revents)
				continue;
			if (take_request(watched[i].fd, &request) == 0)
				handle(&request);
			else
				watched[i].fd = -1;
		}
	}
	return 1;
}
