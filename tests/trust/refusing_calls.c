/* Calls of the system that fail as told, for files whose path begins with REFUSE_BELOW: those of the kind
   REFUSE_CALL (create, write, sync, close, open, read), from number REFUSE_AFTER of them on in each process,
   with the error REFUSE_ERRNO. Loaded with LD_PRELOAD. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int count;

static int refused(const char *call, const char *path) {
  const char *asked = getenv("REFUSE_CALL"), *below = getenv("REFUSE_BELOW");
  if (!asked || !below || strcmp(asked, call) || !path || strncmp(path, below, strlen(below))) return 0;
  if (__sync_fetch_and_add(&count, 1) < atoi(getenv("REFUSE_AFTER"))) return 0;
  errno = atoi(getenv("REFUSE_ERRNO"));
  return 1;
}

static int refused_fd(const char *call, int fd) {
  char link[64], path[PATH_MAX];
  if (!getenv("REFUSE_CALL")) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return refused(call, path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define KIND(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT) ? "create" : "open")
#define OPENS(name)                                                                     \
  int name(const char *path, int flags, ...) {                                          \
    va_list more;                                                                       \
    va_start(more, flags);                                                              \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;           \
    va_end(more);                                                                       \
    if (!(flags & O_DIRECTORY) && refused(KIND(flags), path)) return -1;                \
    return REAL(name)(path, flags, mode);                                               \
  }
#define OPENS_AT(name)                                                                  \
  int name(int at, const char *path, int flags, ...) {                                  \
    va_list more;                                                                       \
    va_start(more, flags);                                                              \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;           \
    va_end(more);                                                                       \
    if (!(flags & O_DIRECTORY) && refused(KIND(flags), path)) return -1;                \
    return REAL(name)(at, path, flags, mode);                                           \
  }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

int mkdir(const char *path, mode_t mode) { return refused("create", path) ? -1 : REAL(mkdir)(path, mode); }
int rename(const char *old, const char *new) { return refused("create", new) ? -1 : REAL(rename)(old, new); }
int fsync(int fd) { return refused_fd("sync", fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return refused_fd("sync", fd) ? -1 : REAL(fdatasync)(fd); }

#define PASSES(kind, type, name, parameters, arguments) \
  type name parameters { return refused_fd(kind, fd) ? -1 : REAL(name) arguments; }
PASSES("write", ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
PASSES("write", ssize_t, writev, (int fd, const struct iovec *data, int size), (fd, data, size))
PASSES("write", ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
PASSES("write", ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
PASSES("read", ssize_t, read, (int fd, void *data, size_t size), (fd, data, size))
PASSES("read", ssize_t, pread, (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
PASSES("read", ssize_t, pread64, (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))

int close(int fd) {
  int writes = getenv("REFUSE_CALL") && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
  int refuses = writes && refused_fd("close", fd), why = errno;
  int result = REAL(close)(fd);
  errno = refuses ? why : errno;
  return refuses ? -1 : result;
}
