// Marks of kernel functions.
#pragma once

// On a kernel, inlines everything it calls, so that register tiles stay in registers. Under sanitizers the instrumented
// code would take minutes to compile, so there the pieces stay functions.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define QUIPU_KERNEL
#define QUIPU_KERNEL_INLINE
#else
#define QUIPU_KERNEL [[gnu::flatten]]
#define QUIPU_KERNEL_INLINE [[gnu::always_inline]]
#endif
