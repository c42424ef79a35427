/* A C host that does with the mail plugin what Dovecot's module loader does: load it after
   libdovecot-storage and the notify plugin, compare its version, call init and deinit, unload it.
   Twice, since a process may load its plugins again.

   usage: host <modules> <plugin>; says "abi: ok" and ends with 0 if all was well. */
#include "lib.h"
#include "module-dir.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef ASAN_DEFAULTS
/* Where there is no /proc the sanitizer does not see its environment. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return ASAN_DEFAULTS;
}
#endif

#define LIBRARIES "/usr/lib/dovecot/"

static void *load(const char *path)
{
	void *handle = dlopen(path, RTLD_GLOBAL | RTLD_NOW);

	if (handle == NULL) {
		fprintf(stderr, "dlopen() failed: %s\n", dlerror());
		exit(1);
	}
	return handle;
}

static void *symbol(void *handle, const char *name)
{
	void *address = dlsym(handle, name);

	if (address == NULL) {
		fprintf(stderr, "%s is not there\n", name);
		exit(1);
	}
	return address;
}

static void call(void *handle, const char *name)
{
	void (*function)(void);

	*(void **)&function = symbol(handle, name);
	function();
}

static void call_init(void *handle, const char *name, struct module *module)
{
	void (*init)(struct module *);

	*(void **)&init = symbol(handle, name);
	init(module);
}

static void check_version(void *handle)
{
	const char *const *version = dlsym(handle, "replication_plugin_version");
	size_t length = strcspn(DOVECOT_ABI_VERSION, "(");

	/* Dovecot does without it, and stock's plugin has none. */
	if (version != NULL && strncmp(*version, DOVECOT_ABI_VERSION, length) != 0) {
		fprintf(stderr, "version %s, Dovecot's is %s\n", *version, DOVECOT_ABI_VERSION);
		exit(1);
	}
}

static void check_dependencies(void *handle)
{
	const char *const *names = symbol(handle, "replication_plugin_dependencies");

	if (names[0] == NULL || strcmp(names[0], "notify") != 0 || names[1] != NULL) {
		fprintf(stderr, "the dependency is not notify alone\n");
		exit(1);
	}
}

static void load_and_unload(const char *path)
{
	void *handle = load(path);
	struct module module;

	memset(&module, 0, sizeof(module));
	module.path = (char *)path;
	module.name = (char *)"replication";
	module.handle = handle;
	check_version(handle);
	check_dependencies(handle);
	call_init(handle, "replication_plugin_init", &module);
	call(handle, "replication_plugin_deinit");
	if (dlclose(handle) != 0) {
		fprintf(stderr, "dlclose() failed: %s\n", dlerror());
		exit(1);
	}
	if (dlopen(path, RTLD_NOLOAD | RTLD_NOW) != NULL) {
		fprintf(stderr, "still loaded after dlclose(): it left a destructor behind\n");
		exit(1);
	}
}

int main(int argc, char *argv[])
{
	char notify_path[4096];
	struct module module;
	void *libdovecot, *storage, *notify;
	int round;

	if (argc != 3) {
		fprintf(stderr, "usage: host <modules> <plugin>\n");
		return 64;
	}
	libdovecot = load(LIBRARIES "libdovecot.so.0");
	storage = load(LIBRARIES "libdovecot-storage.so.0");
	snprintf(notify_path, sizeof(notify_path), "%s/lib15_notify_plugin.so", argv[1]);
	notify = load(notify_path);
	memset(&module, 0, sizeof(module));
	module.path = notify_path;
	module.name = (char *)"notify";
	module.handle = notify;

	call(libdovecot, "lib_init");
	call(storage, "mail_storage_init");
	call_init(notify, "notify_plugin_init", &module);
	for (round = 0; round < 2; round++)
		load_and_unload(argv[2]);
	call(notify, "notify_plugin_deinit");
	call(storage, "mail_storage_deinit");
	call(libdovecot, "lib_deinit");
	printf("abi: ok\n");
	return 0;
}
