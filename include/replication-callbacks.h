#ifndef REPLICATION_CALLBACKS_H
#define REPLICATION_CALLBACKS_H
typedef struct ReplicationCallbacks {
  void (*user_deinit)(void *context);
  void (*retry)(void);
} ReplicationCallbacks;
#endif
