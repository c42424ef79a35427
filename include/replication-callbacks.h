/* Generated from src/plugin/callbacks.rs by `make header`; do not edit. */

#ifndef REPLICATION_CALLBACKS_H
#define REPLICATION_CALLBACKS_H

// The functions that c-shim/plugin.c calls, given to it at init.
typedef struct ReplicationCallbacks {
  // The user of this context has been deinitialized; the context is given back.
  void (*user_deinit)(void *context);
  // The timeout for a new try has come.
  void (*retry)(void);
  // A sync of this mailbox, a `struct mailbox`, has failed.
  void (*sync_failed)(void *mailbox);
} ReplicationCallbacks;

#endif  /* REPLICATION_CALLBACKS_H */
