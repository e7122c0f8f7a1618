/* cuBLAS and cuDNN on a device that computes nothing: what torch asks of them is set up, and each product or
 * convolution is a launch. */

#include <cublasLt.h>
#include <cublas_v2.h>
#include <cudnn.h>
#include <string.h>

#include "answers.h"

/* --- cuBLAS ------------------------------------------------------------------------------------- */

static __thread cudaStream_t blas_stream;

static int multiplied(cudaStream_t stream) {
    return idle_gpu_launched(stream) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}
#define MULTIPLIES(name) ANSWERS(name, multiplied(blas_stream))

cublasStatus_t cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    blas_stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}
MAKES(cublasCreate_v2)
SUCCEEDS(cublasDestroy_v2)
SUCCEEDS(cublasSetMathMode)
SUCCEEDS(cublasSetPointerMode_v2)
SUCCEEDS(cublasSetWorkspace_v2)
MULTIPLIES(cublasDgemm_v2)
MULTIPLIES(cublasDgemmStridedBatched)
MULTIPLIES(cublasDgemv_v2)
MULTIPLIES(cublasDotEx)
MULTIPLIES(cublasGemmEx)
MULTIPLIES(cublasGemmStridedBatchedEx)
MULTIPLIES(cublasSdot_v2)
MULTIPLIES(cublasSgemmEx)
MULTIPLIES(cublasSgemm_v2)
MULTIPLIES(cublasSgemmStridedBatched)
MULTIPLIES(cublasSgemv_v2)

MAKES(cublasLtMatmulDescCreate)
MAKES(cublasLtMatmulPreferenceCreate)
MAKES(cublasLtMatrixLayoutCreate)
SUCCEEDS(cublasLtMatmulDescDestroy)
SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceDestroy)
SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutDestroy)
SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference, int wanted,
    cublasLtMatmulHeuristicResult_t found[], int *count
) {
    memset(found, 0, sizeof *found);
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmul(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
    cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
    cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algorithm,
    void *workspace, size_t bytes, cudaStream_t stream
) {
    return multiplied(stream);
}

/* --- cuDNN -------------------------------------------------------------------------------------- */

static __thread cudaStream_t dnn_stream;

static int computed(void) {
    return idle_gpu_launched(dnn_stream) ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
#define COMPUTES(name) ANSWERS(name, computed())

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    dnn_stream = stream;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
    *stream = dnn_stream;
    return CUDNN_STATUS_SUCCESS;
}
const char *cudnnGetErrorString(cudnnStatus_t status) { return status ? "an error of the idle device" : "no error"; }
MAKES(cudnnCreate)
MAKES(cudnnCreateActivationDescriptor)
MAKES(cudnnCreateFilterDescriptor)
MAKES(cudnnCreatePoolingDescriptor)
MAKES(cudnnCreateTensorDescriptor)
SUCCEEDS(cudnnDestroyActivationDescriptor)
SUCCEEDS(cudnnDestroyFilterDescriptor)
SUCCEEDS(cudnnDestroyPoolingDescriptor)
SUCCEEDS(cudnnDestroyTensorDescriptor)
SUCCEEDS(cudnnSetActivationDescriptor)
SUCCEEDS(cudnnSetFilterNdDescriptor)
SUCCEEDS(cudnnSetPooling2dDescriptor)
SUCCEEDS(cudnnSetTensorNdDescriptor)
COMPUTES(cudnnBatchNormalizationBackwardEx)
COMPUTES(cudnnBatchNormalizationForwardInference)
COMPUTES(cudnnBatchNormalizationForwardTrainingEx)
COMPUTES(cudnnPoolingForward)
cudnnStatus_t cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t operations, cudnnTensorDescriptor_t x,
    cudnnTensorDescriptor_t z, cudnnTensorDescriptor_t y, cudnnTensorDescriptor_t scale,
    cudnnActivationDescriptor_t activation, size_t *bytes
) {
    *bytes = 1 << 20;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetBatchNormalizationBackwardExWorkspaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t operations, cudnnTensorDescriptor_t x,
    cudnnTensorDescriptor_t y, cudnnTensorDescriptor_t dy, cudnnTensorDescriptor_t dz, cudnnTensorDescriptor_t dx,
    cudnnTensorDescriptor_t scale, cudnnActivationDescriptor_t activation, size_t *bytes
) {
    *bytes = 1 << 20;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnGetBatchNormalizationTrainingExReserveSpaceSize(
    cudnnHandle_t handle, cudnnBatchNormMode_t mode, cudnnBatchNormOps_t operations,
    cudnnActivationDescriptor_t activation, cudnnTensorDescriptor_t x, size_t *bytes
) {
    *bytes = 1 << 16;
    return CUDNN_STATUS_SUCCESS;
}

/* Convolutions are graphs of descriptors: one engine is found for each, with nothing to be said of it. */
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t kind, cudnnBackendDescriptor_t *made) {
    static char object[64];
    *made = (cudnnBackendDescriptor_t)object;
    return CUDNN_STATUS_SUCCESS;
}
SUCCEEDS(cudnnBackendDestroyDescriptor)
SUCCEEDS(cudnnBackendFinalize)
SUCCEEDS(cudnnBackendSetAttribute)
COMPUTES(cudnnBackendExecute)
cudnnStatus_t cudnnBackendGetAttribute(
    cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
    int64_t wanted, int64_t *count, void *elements
) {
    int has_none = name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE || name == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE ||
                   name == CUDNN_ATTR_ENGINE_KNOB_INFO || name == CUDNN_ATTR_ENGINECFG_KNOB_CHOICES;
    if (count != NULL) *count = !has_none;
    if (!has_none && elements != NULL && type != CUDNN_TYPE_BACKEND_DESCRIPTOR)
        memset(elements, 0, type == CUDNN_TYPE_INT64 ? 8 : 4);
    return CUDNN_STATUS_SUCCESS;
}
