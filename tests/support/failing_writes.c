/* Fails the N-th call that changes a file below a folder. Preloaded by test_promise_writes.py, armed through ctypes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sendfile.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long seen, first = -1;
static int error, from_then_on;

void arm(long number, int code, int lasting, const char *below) {
    strncpy(folder, below, sizeof folder - 1);
    seen = 0, first = number, error = code, from_then_on = lasting;
}

long disarm(void) {
    first = -1;
    return seen;
}

static int refused(const char *path) {
    if (first < 0 || strncmp(path, folder, strlen(folder))) return 0;
    seen++;
    if (seen != first && !(from_then_on && seen > first)) return 0;
    errno = error;
    return 1;
}

static int refused_file(int file) {
    char link[64], path[PATH_MAX];
    if (first < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return refused(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int file, const void *bytes, size_t size) {
    return refused_file(file) ? -1 : REAL(write)(file, bytes, size);
}
ssize_t pwrite64(int file, const void *bytes, size_t size, off64_t offset) {
    return refused_file(file) ? -1 : REAL(pwrite64)(file, bytes, size, offset);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    return refused_file(file) ? -1 : REAL(writev)(file, parts, count);
}
size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
    return refused_file(fileno(file)) ? 0 : REAL(fwrite)(bytes, size, count, file);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t size) {
    return refused_file(out) ? -1 : REAL(sendfile64)(out, in, offset, size);
}
ssize_t sendfile(int out, int in, off_t *offset, size_t size) {
    return refused_file(out) ? -1 : REAL(sendfile)(out, in, offset, size);
}
int fsync(int file) { return refused_file(file) ? -1 : REAL(fsync)(file); }
int ftruncate64(int file, off64_t size) { return refused_file(file) ? -1 : REAL(ftruncate64)(file, size); }
int rename(const char *from, const char *to) { return refused(to) ? -1 : REAL(rename)(from, to); }
int mkdir(const char *path, mode_t mode) { return refused(path) ? -1 : REAL(mkdir)(path, mode); }

#define OPEN(name)                                            \
    int name(const char *path, int flags, ...) {              \
        va_list rest;                                         \
        va_start(rest, flags);                                \
        mode_t mode = va_arg(rest, mode_t);                   \
        va_end(rest);                                         \
        if ((flags & O_CREAT) && refused(path)) return -1;    \
        return REAL(name)(path, flags, mode);                 \
    }
OPEN(open)
OPEN(open64)
