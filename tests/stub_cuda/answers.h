/* Definitions of functions that are called by their names with whatever arguments, and whose results alone matter.
 * Their names in C differ, so that the headers' declarations of the same functions do not contradict them. */

#define ANSWERS(name, ...)                          \
    int idle_##name(void) __asm__(#name);           \
    int idle_##name(void) { return __VA_ARGS__; }

/* Succeeds and does nothing: 0 is success in all of CUDA's libraries. */
#define SUCCEEDS(name) ANSWERS(name, 0)

/* Gives out an object that nobody looks into. */
#define MAKES(name)                                 \
    int idle_##name(void **made) __asm__(#name);    \
    int idle_##name(void **made) {                  \
        static char object[64];                     \
        *made = object;                             \
        return 0;                                   \
    }

/* Counts a launch on a stream; fails where CUDA would. */
cudaError_t idle_gpu_launched(cudaStream_t stream);
