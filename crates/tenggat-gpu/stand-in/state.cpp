// The driver's state, and the entry to its calls: what all other parts stand on.
#include "state.hpp"

Driver driver;
thread_local void* current_context = nullptr;

Entry::Entry(bool needs_context) : lock(driver.mutex) {
    failure = !driver.is_initialised               ? NOT_INITIALIZED
              : needs_context && !current_context  ? INVALID_CONTEXT
              : !driver.retained                   ? CONTEXT_IS_DESTROYED
                                                   : driver.failure;
}
