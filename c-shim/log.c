#include "lib.h"
#include "log.h"

void replication_shim_log(enum replication_shim_level level, const char *text)
{
	switch (level) {
	case REPLICATION_SHIM_DEBUG:
		i_debug("%s", text);
		break;
	case REPLICATION_SHIM_INFO:
		i_info("%s", text);
		break;
	case REPLICATION_SHIM_WARNING:
		i_warning("%s", text);
		break;
	case REPLICATION_SHIM_ERROR:
		i_error("%s", text);
		break;
	}
}
