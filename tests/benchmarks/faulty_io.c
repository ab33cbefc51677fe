// Makes calls of the C library fail on chosen paths, as a sick disk or network file system does; in Pythons alone.
//
//   cc -O1 -shared -fPIC -o faulty_io.so faulty_io.c -ldl
//   LD_PRELOAD=$PWD/faulty_io.so FAULTY_PATHS=REGEX FAULTY_CALLS=open,read FAULTY_ERRNO=5 FAULTY_STATE=FILE PROGRAM
//
// FAULTY_PATHS   extended regular expression; a call counts if it is found in the file's absolute path
// FAULTY_CALLS   some of stat, list, open, read, write, sync, rename
// FAULTY_ERRNO   a number, such as 5 (EIO), 28 (ENOSPC), 116 (ESTALE)
// FAULTY_STATE   file that all processes count in: they share what follows. In it: calls, failures (8 bytes each), then
//                the failed calls as lines of text
// FAULTY_SKIP    calls that succeed before the first failure (0)
// FAULTY_EVERY   then each so many-th call fails (1)
// FAULTY_COUNT   until so many have failed (-1: for ever)

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <regex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { HEADER = 16 };

static regex_t paths;
static const char *calls;
static int number, log_file = -1;
static long skip, every, most;
static struct { uint64_t seen, failed; } *shared;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long setting(const char *name, long otherwise) {
  const char *value = getenv(name);
  return value && *value ? atol(value) : otherwise;
}

__attribute__((constructor)) static void begin(void) {
  const char *pattern = getenv("FAULTY_PATHS"), *state = getenv("FAULTY_STATE");
  calls = getenv("FAULTY_CALLS");
  if (!strstr(program_invocation_short_name, "python")) return;
  if (!pattern || !state || !calls || regcomp(&paths, pattern, REG_EXTENDED | REG_NOSUB)) return;
  number = setting("FAULTY_ERRNO", EIO);
  skip = setting("FAULTY_SKIP", 0);
  every = setting("FAULTY_EVERY", 1);
  most = setting("FAULTY_COUNT", -1);
  int fd = REAL(open)(state, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  struct stat found;
  if (fd < 0 || fstat(fd, &found) || (found.st_size < HEADER && ftruncate(fd, HEADER))) return;
  void *at = mmap(NULL, HEADER, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  log_file = REAL(open)(state, O_WRONLY | O_APPEND | O_CLOEXEC);
  if (at != MAP_FAILED) shared = at;
}

static int fails(const char *call, const char *path) {
  if (!shared || !strstr(calls, call) || regexec(&paths, path, 0, NULL, 0)) return 0;
  long n = (long)__atomic_fetch_add(&shared->seen, 1, __ATOMIC_RELAXED) - skip;
  if (n < 0 || n % every || (most >= 0 && n / every >= most)) return 0;
  __atomic_fetch_add(&shared->failed, 1, __ATOMIC_RELAXED);
  char line[PATH_MAX + 64];
  int size = snprintf(line, sizeof line, "%d %s %s\n", (int)getpid(), call, path);
  ssize_t written = REAL(write)(log_file, line, size);
  (void)written;
  errno = number;
  return 1;
}

static int fails_at(const char *call, int folder, const char *path) {
  char whole[2 * PATH_MAX], link[64];
  if (!shared || !path || path[0] == '/') return path ? fails(call, path) : 0;
  snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
  ssize_t size = readlink(link, whole, PATH_MAX);
  if (size < 0) return 0;
  snprintf(whole + size, PATH_MAX, "/%s", path);
  return fails(call, whole);
}

static int fails_on(const char *call, int fd) {
  char path[PATH_MAX], link[64];
  if (!shared) return 0;
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  errno = before;
  if (size < 0 || path[0] != '/') return 0;  // sockets and pipes
  path[size] = 0;
  return fails(call, path);
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); }

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    MODE(flags) \
    return fails_at("open", AT_FDCWD, path) ? -1 : REAL(name)(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    MODE(flags) \
    return fails_at("open", folder, path) ? -1 : REAL(name)(folder, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

int __openat_2(int folder, const char *path, int flags);
int __openat_2(int folder, const char *path, int flags) {
  return fails_at("open", folder, path) ? -1 : REAL(__openat_2)(folder, path, flags);
}

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    return fails_at("open", AT_FDCWD, path) ? NULL : REAL(name)(path, mode); \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_FD(call, result, name, declared, given) \
  result name declared { return fails_on(call, fd) ? -1 : REAL(name) given; }
ON_FD("read", ssize_t, read, (int fd, void *to, size_t n), (fd, to, n))
ON_FD("read", ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
ON_FD("read", ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
ON_FD("read", ssize_t, readv, (int fd, const struct iovec *to, int n), (fd, to, n))
ON_FD("read", ssize_t, preadv, (int fd, const struct iovec *to, int n, off_t at), (fd, to, n, at))
ON_FD("write", ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n))
ON_FD("write", ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
ON_FD("write", ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
ON_FD("write", ssize_t, writev, (int fd, const struct iovec *from, int n), (fd, from, n))
ON_FD("sync", int, fsync, (int fd), (fd))
ON_FD("sync", int, fdatasync, (int fd), (fd))

#define STAT(name, kind) \
  int name(const char *path, struct kind *to) { return fails_at("stat", AT_FDCWD, path) ? -1 : REAL(name)(path, to); }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

#define FSTATAT(name, kind) \
  int name(int folder, const char *path, struct kind *to, int flags) { \
    return fails_at("stat", folder, path) ? -1 : REAL(name)(folder, path, to, flags); \
  }
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

DIR *opendir(const char *path) {
  return fails_at("list", AT_FDCWD, path) ? NULL : REAL(opendir)(path);
}

int rename(const char *from, const char *to) {
  return fails_at("rename", AT_FDCWD, from) ? -1 : REAL(rename)(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
  return fails_at("rename", from_folder, from) ? -1 : REAL(renameat)(from_folder, from, to_folder, to);
}
