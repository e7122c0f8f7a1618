/* What the runtime's headers take from the compiler's package, which torch does not bring. */
#define __host__
#define __device__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __builtin_align__(n) __attribute__((aligned(n)))
#define __align__(n) __attribute__((aligned(n)))
#define __specialization_static static
#define __inline_hint__
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define CUDAAPI
