// The part of ONNX Runtime's C ABI that a custom op library needs, declared here because the wheels
// ship no headers. The ABI is append-only: OrtApi is an array of function pointers whose slots
// never move, and OrtCustomOp only grows at its end (guarded by its version field).
#pragma once

#include <cstddef>
#include <cstdint>

namespace paretune::ort {

constexpr uint32_t kApiVersion = 18;

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct Value;
struct TensorInfo;
struct OpAttribute;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kAnyType = 0,
  kFloat = 1,
  kUint8 = 2,
  kUint16 = 4,
  kInt64 = 7,
  kBfloat16 = 16,
};
enum Presence : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kMemoryDefault = 0 };
enum AttributeType : int { kAttributeInt = 1 };

// Each entry: slot number and signature of one OrtApi function used by this library.
template <size_t Slot, typename Signature>
struct Function {
  static constexpr size_t slot = Slot;
  using Pointer = Signature;
};

using CreateStatus = Function<0, Status* (*)(ErrorCode, const char*)>;
using CreateCustomOpDomain = Function<26, Status* (*)(const char*, CustomOpDomain**)>;
using CustomOpDomainAdd = Function<27, Status* (*)(CustomOpDomain*, const struct CustomOp*)>;
using AddCustomOpDomain = Function<28, Status* (*)(SessionOptions*, CustomOpDomain*)>;
using GetTensorMutableData = Function<51, Status* (*)(Value*, void**)>;
using CreateTensorInfo = Function<57, Status* (*)(TensorInfo**)>;
using SetTensorElementType = Function<58, Status* (*)(TensorInfo*, ElementType)>;
using SetDimensions = Function<59, Status* (*)(TensorInfo*, const int64_t*, size_t)>;
using GetTensorElementType = Function<60, Status* (*)(const TensorInfo*, ElementType*)>;
using GetDimensionsCount = Function<61, Status* (*)(const TensorInfo*, size_t*)>;
using GetDimensions = Function<62, Status* (*)(const TensorInfo*, int64_t*, size_t)>;
using GetSymbolicDimensions = Function<63, Status* (*)(const TensorInfo*, const char**, size_t)>;
using GetTensorTypeAndShape = Function<65, Status* (*)(const Value*, TensorInfo**)>;
using GetAttributeInt64 = Function<86, Status* (*)(const KernelInfo*, const char*, int64_t*)>;
using GetAttributeString =
    Function<87, Status* (*)(const KernelInfo*, const char*, char*, size_t*)>;
using GetInputCount = Function<88, Status* (*)(const KernelContext*, size_t*)>;
using GetInput = Function<90, Status* (*)(const KernelContext*, size_t, const Value**)>;
using GetOutput =
    Function<91, Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = Function<93, void (*)(Status*)>;
using ReleaseTensorInfo = Function<99, void (*)(TensorInfo*)>;
using GetConstantInput = Function<249, Status* (*)(const KernelInfo*, size_t, int*, const Value**)>;
using ShapeInferInput = Function<268, Status* (*)(const ShapeInferContext*, size_t, TensorInfo**)>;
using ShapeInferAttribute =
    Function<269, Status* (*)(const ShapeInferContext*, const char*, const OpAttribute**)>;
using ShapeInferOutput =
    Function<270, Status* (*)(const ShapeInferContext*, size_t, const TensorInfo*)>;
using SetSymbolicDimensions = Function<271, Status* (*)(TensorInfo*, const char**, size_t)>;
using ReadAttribute =
    Function<272, Status* (*)(const OpAttribute*, AttributeType, void*, size_t, size_t*)>;
using ParallelFor = Function<274, Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t,
                                              size_t, void*)>;

struct Api {
  void (*functions[275])();
};

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// call<GetInput>(api, context, index, &value)
template <typename F, typename... Args>
auto call(const Api* api, Args... args) {
  return reinterpret_cast<typename F::Pointer>(api->functions[F::slot])(args...);
}

// OrtCustomOp as of API version 18; the order of the members is the ABI.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Presence (*input_presence)(const CustomOp*, size_t);
  Presence (*output_presence)(const CustomOp*, size_t);
  MemoryType (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, ShapeInferContext*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_may_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias_map)(int*, int*);
};

}  // namespace paretune::ort
