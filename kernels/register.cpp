// The ONNX Runtime side of ai.paretune::QuantLowRankMatMul: reads tensors and attributes, checks
// them, calls quant_low_rank_matmul, and turns every failure into an OrtStatus.

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "bank.h"
#include "error.h"
#include "ort_abi.h"
#include "quant_low_rank_matmul.h"

namespace paretune {
namespace {

enum Input : size_t {
  kX,
  kWeight,
  kAbsmax,
  kCodebook,
  kNestedAbsmax,
  kNestedCodebook,
  kNestedOffset,
  kBias,
  kBank,
  kSlot,
  kInputCount,
};

constexpr const char* kInputNames[kInputCount] = {
    "x",    "weight", "absmax", "codebook", "nested_absmax", "nested_codebook", "nested_offset",
    "bias", "bank",   "slot",
};

// A failure that ONNX Runtime itself reported; handed back unchanged.
struct OrtFailure {
  ort::Status* status;
};

template <typename F, typename... Args>
void check(const ort::Api* api, Args... args) {
  if (ort::Status* status = ort::call<F>(api, args...)) throw OrtFailure{status};
}

struct Tensor {
  const void* data = nullptr;
  ort::ElementType type = ort::kAnyType;
  std::vector<int64_t> shape;

  int64_t count() const {
    int64_t result = 1;
    for (int64_t dimension : shape) result *= dimension;
    return result;
  }
};

Tensor read_tensor(const ort::Api* api, const ort::Value* value) {
  Tensor tensor;
  ort::TensorInfo* info = nullptr;
  check<ort::GetTensorTypeAndShape>(api, value, &info);
  size_t dimensions = 0;
  ort::Status* status = ort::call<ort::GetTensorElementType>(api, info, &tensor.type);
  if (status == nullptr) status = ort::call<ort::GetDimensionsCount>(api, info, &dimensions);
  if (status == nullptr) {
    tensor.shape.resize(dimensions);
    status = ort::call<ort::GetDimensions>(api, info, tensor.shape.data(), dimensions);
  }
  ort::call<ort::ReleaseTensorInfo>(api, info);
  if (status != nullptr) throw OrtFailure{status};
  void* data = nullptr;
  check<ort::GetTensorMutableData>(api, const_cast<ort::Value*>(value), &data);
  tensor.data = data;
  return tensor;
}

void expect(const Tensor& tensor, Input input, ort::ElementType type, int64_t count) {
  if (tensor.type != type || tensor.count() != count) {
    throw OpError(std::string(kInputNames[input]) + " has " + std::to_string(tensor.count()) +
                  " elements of type " + std::to_string(tensor.type) + ", expected " +
                  std::to_string(count) + " of type " + std::to_string(type));
  }
}

// The tensors a weight is made of, in whichever way they were obtained.
struct WeightTensors {
  Tensor tensors[kNestedOffset + 1];
  bool present[kNestedOffset + 1] = {};
};

struct Kernel {
  const ort::Api* api;
  const Variant* variant;
  int64_t out_features;
  int64_t in_features;
  int64_t block_size;
  int64_t site;
  Precision precision;
  bool prepared = false;  // the weight is constant and `weight` is ready
  Weight weight;
};

Weight prepare(const Kernel& kernel, const WeightTensors& inputs) {
  const Tensor& data = inputs.tensors[kWeight];
  Weight weight;
  weight.out_features = kernel.out_features;
  weight.in_features = kernel.in_features;
  weight.block_size = kernel.block_size;
  weight.data = data.data;
  const int64_t count = kernel.out_features * kernel.in_features;
  if (data.type != ort::kUint8) {
    weight.format = data.type == ort::kFloat ? Format::kF32 : Format::kBf16;
    require(data.type == ort::kFloat || data.type == ort::kBfloat16 || data.type == ort::kUint16,
            "weight must be float, bfloat16 or uint8 codes");
    expect(data, kWeight, data.type, count);
    require(kernel.precision == Precision::kExact,
            "precision fast needs a 4-bit weight: this one is float");
    return weight;
  }
  weight.format = Format::kCodes;
  expect(data, kWeight, ort::kUint8, count / 2 + count % 2);
  require(inputs.present[kAbsmax] && inputs.present[kCodebook],
          "a 4-bit weight needs the inputs absmax and codebook");
  const int64_t blocks = (count - 1) / kernel.block_size + 1;
  const bool nested = inputs.present[kNestedAbsmax];
  require(nested == inputs.present[kNestedCodebook] && nested == inputs.present[kNestedOffset],
          "nested_absmax, nested_codebook and nested_offset go together");
  expect(inputs.tensors[kAbsmax], kAbsmax, nested ? ort::kUint8 : ort::kFloat, blocks);
  expect(inputs.tensors[kCodebook], kCodebook, ort::kFloat, 16);
  CodeTensors codes;
  codes.absmax = inputs.tensors[kAbsmax].data;
  codes.absmax_count = static_cast<size_t>(blocks);
  codes.codebook = static_cast<const float*>(inputs.tensors[kCodebook].data);
  if (nested) {
    expect(inputs.tensors[kNestedAbsmax], kNestedAbsmax, ort::kFloat, (blocks - 1) / 256 + 1);
    expect(inputs.tensors[kNestedCodebook], kNestedCodebook, ort::kFloat, 256);
    expect(inputs.tensors[kNestedOffset], kNestedOffset, ort::kFloat, 1);
    codes.nested_absmax = static_cast<const float*>(inputs.tensors[kNestedAbsmax].data);
    codes.nested_codebook = static_cast<const float*>(inputs.tensors[kNestedCodebook].data);
    codes.nested_offset = static_cast<const float*>(inputs.tensors[kNestedOffset].data);
  }
  prepare_codes(codes, kernel.precision, *kernel.variant, &weight);
  return weight;
}

int64_t read_int(const ort::Api* api, const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  check<ort::GetAttributeInt64>(api, info, name, &value);
  return value;
}

// Optional attributes carry no default here: ONNX Runtime does not tell a custom op about the
// schema.
int64_t read_int_or(const ort::Api* api, const ort::KernelInfo* info, const char* name,
                    int64_t otherwise) {
  int64_t value = 0;
  ort::Status* status = ort::call<ort::GetAttributeInt64>(api, info, name, &value);
  if (status == nullptr) return value;
  ort::call<ort::ReleaseStatus>(api, status);
  return otherwise;
}

Precision read_precision(const ort::Api* api, const ort::KernelInfo* info) {
  size_t size = 0;
  ort::Status* status = ort::call<ort::GetAttributeString>(api, info, "precision",
                                                           static_cast<char*>(nullptr), &size);
  if (status != nullptr) {
    ort::call<ort::ReleaseStatus>(api, status);
    return Precision::kExact;
  }
  std::string text(size, '\0');
  check<ort::GetAttributeString>(api, info, "precision", text.data(), &size);
  text.resize(size > 0 ? size - 1 : 0);
  if (text == "exact") return Precision::kExact;
  if (text == "fast") return Precision::kFast;
  throw OpError("precision is neither exact nor fast: " + text);
}

void prepare_constant(const ort::KernelInfo* info, Kernel* kernel) {
  WeightTensors inputs;
  for (size_t i = kWeight; i <= kNestedOffset; ++i) {
    int constant = 0;
    const ort::Value* value = nullptr;
    check<ort::GetConstantInput>(kernel->api, info, i, &constant, &value);
    if (constant == 0 || value == nullptr) continue;
    inputs.tensors[i] = read_tensor(kernel->api, value);
    inputs.present[i] = true;
  }
  if (!inputs.present[kWeight]) return;
  // A constant weight with computed scales: left to the first run, which sees every input.
  const bool codes = inputs.tensors[kWeight].type == ort::kUint8;
  if (codes && !(inputs.present[kAbsmax] && inputs.present[kCodebook])) return;
  if (codes && inputs.tensors[kAbsmax].type == ort::kUint8 && !inputs.present[kNestedOffset]) {
    return;
  }
  kernel->weight = prepare(*kernel, inputs);
  kernel->prepared = true;
}

ort::Status* guarded(const ort::Api* api, void (*body)(void*), void* argument) {
  try {
    body(argument);
    return nullptr;
  } catch (const OrtFailure& failure) {
    return failure.status;
  } catch (const OpError& error) {
    const std::string message = std::string("QuantLowRankMatMul: ") + error.what();
    return ort::call<ort::CreateStatus>(api, ort::kInvalidArgument, message.c_str());
  } catch (const std::exception& error) {
    return ort::call<ort::CreateStatus>(api, ort::kFail, error.what());
  }
}

template <typename Body>
ort::Status* guard(const ort::Api* api, Body body) {
  return guarded(api, [](void* argument) { (*static_cast<Body*>(argument))(); }, &body);
}

ort::Status* create_kernel(const ort::CustomOp*, const ort::Api* api, const ort::KernelInfo* info,
                           void** out) {
  return guard(api, [&] {
    auto kernel = std::make_unique<Kernel>();
    kernel->api = api;
    kernel->variant = &select_variant();
    kernel->out_features = read_int(api, info, "out_features");
    kernel->in_features = read_int(api, info, "in_features");
    kernel->block_size = read_int_or(api, info, "block_size", kBlock);
    kernel->site = read_int_or(api, info, "site", -1);
    kernel->precision = read_precision(api, info);
    int64_t count = 0;
    require(kernel->out_features > 0 && kernel->in_features > 0 && kernel->block_size > 0 &&
                !__builtin_mul_overflow(kernel->out_features, kernel->in_features, &count) &&
                count < (int64_t{1} << 56),
            "out_features, in_features and block_size must be positive");
    prepare_constant(info, kernel.get());
    *out = kernel.release();
  });
}

// Looks up the updates of a batch; a node without a bank runs the base for every row.
std::vector<Update> read_updates(const Kernel& kernel, const Tensor* bank, const Tensor* slot,
                                 int64_t batch) {
  require((bank == nullptr) == (slot == nullptr), "bank and slot go together");
  std::vector<Update> updates(static_cast<size_t>(bank == nullptr ? 1 : batch));
  if (bank == nullptr) return updates;
  require(bank->type == ort::kUint8, "bank must be uint8");
  expect(*slot, kSlot, ort::kInt64, batch);
  const Bank reader(static_cast<const uint8_t*>(bank->data), static_cast<size_t>(bank->count()));
  const auto* slots = static_cast<const int64_t*>(slot->data);
  for (int64_t row = 0; row < batch; ++row) {
    updates[row] = reader.update(slots[row], kernel.site, kernel.out_features, kernel.in_features);
  }
  return updates;
}

struct PoolCall {
  const ort::Api* api;
  const ort::KernelContext* context;
};

void run_in_pool(void* host, void (*task)(void*, size_t), size_t total, void* user) {
  const auto& pool = *static_cast<PoolCall*>(host);
  check<ort::ParallelFor>(pool.api, pool.context, task, total, size_t{0}, user);
}

struct Inputs {
  Tensor tensors[kInputCount];
  bool present[kInputCount] = {};

  const Tensor* find(Input input) const { return present[input] ? &tensors[input] : nullptr; }
};

Inputs read_inputs(const Kernel& kernel, const ort::KernelContext* context) {
  Inputs inputs;
  size_t count = 0;
  check<ort::GetInputCount>(kernel.api, context, &count);
  for (size_t i = 0; i < count && i < kInputCount; ++i) {
    if (kernel.prepared && i >= kWeight && i <= kNestedOffset) continue;
    const ort::Value* value = nullptr;
    check<ort::GetInput>(kernel.api, context, i, &value);
    if (value == nullptr) continue;
    inputs.tensors[i] = read_tensor(kernel.api, value);
    inputs.present[i] = true;
  }
  const Tensor& x = inputs.tensors[kX];
  require(inputs.present[kX] && x.type == ort::kFloat, "x must be float");
  if (x.shape.empty() || x.shape.back() != kernel.in_features) {
    throw OpError("the last dimension of x is not in_features: " +
                  (x.shape.empty() ? "none" : std::to_string(x.shape.back())) + " instead of " +
                  std::to_string(kernel.in_features));
  }
  require(!inputs.present[kBank] || x.shape.size() >= 2, "x needs a batch dimension beside a bank");
  if (inputs.present[kBias]) {
    expect(inputs.tensors[kBias], kBias, ort::kFloat, kernel.out_features);
  }
  return inputs;
}

float* allocate_output(const Kernel& kernel, ort::KernelContext* context,
                       std::vector<int64_t> shape) {
  shape.back() = kernel.out_features;
  ort::Value* output = nullptr;
  check<ort::GetOutput>(kernel.api, context, size_t{0}, static_cast<const int64_t*>(shape.data()),
                        shape.size(), &output);
  void* data = nullptr;
  check<ort::GetTensorMutableData>(kernel.api, output, &data);
  return static_cast<float*>(data);
}

Weight prepare_computed(const Kernel& kernel, const Inputs& inputs) {
  WeightTensors parts;
  for (size_t i = kWeight; i <= kNestedOffset; ++i) {
    parts.tensors[i] = inputs.tensors[i];
    parts.present[i] = inputs.present[i];
  }
  return prepare(kernel, parts);
}

void compute(const Kernel& kernel, ort::KernelContext* context) {
  const Inputs inputs = read_inputs(kernel, context);
  const Tensor& x = inputs.tensors[kX];
  const std::vector<Update> updates =
      read_updates(kernel, inputs.find(kBank), inputs.find(kSlot), x.shape.front());
  const Weight computed = kernel.prepared ? Weight{} : prepare_computed(kernel, inputs);
  float* y = allocate_output(kernel, context, x.shape);
  const int64_t rows = x.count() / kernel.in_features;
  if (rows == 0) return;
  const Tensor* bias = inputs.find(kBias);
  const Problem problem = {
      kernel.variant,
      kernel.prepared ? &kernel.weight : &computed,
      kernel.precision,
      bias == nullptr ? nullptr : static_cast<const float*>(bias->data),
      rows,
      rows / static_cast<int64_t>(updates.size()),
      updates.data(),
      static_cast<const float*>(x.data),
      y,
  };
  PoolCall call = {kernel.api, context};
  quant_low_rank_matmul(problem, Pool{&call, run_in_pool});
}

ort::Status* compute_kernel(void* kernel, ort::KernelContext* context) {
  const Kernel& self = *static_cast<Kernel*>(kernel);
  return guard(self.api, [&] { compute(self, context); });
}

const ort::Api* g_api =
    nullptr;  // infer_shape receives no api; set once when the library registers

// An output description with these dimensions; empty symbols mark known ones.
void set_output_shape(const ort::Api* api, const ort::ShapeInferContext* context,
                      const std::vector<int64_t>& shape, std::vector<const char*>* symbols) {
  ort::TensorInfo* y = nullptr;
  check<ort::CreateTensorInfo>(api, &y);
  ort::Status* status = ort::call<ort::SetTensorElementType>(api, y, ort::kFloat);
  if (status == nullptr) {
    status = ort::call<ort::SetDimensions>(api, y, shape.data(), shape.size());
  }
  if (status == nullptr) {
    status = ort::call<ort::SetSymbolicDimensions>(api, y, symbols->data(), symbols->size());
  }
  if (status == nullptr) {
    status = ort::call<ort::ShapeInferOutput>(api, context, size_t{0},
                                              static_cast<const ort::TensorInfo*>(y));
  }
  ort::call<ort::ReleaseTensorInfo>(api, y);
  if (status != nullptr) throw OrtFailure{status};
}

ort::Status* infer_shape(const ort::CustomOp*, ort::ShapeInferContext* context) {
  const ort::Api* api = g_api;
  return guard(api, [&] {
    const auto* reader = static_cast<const ort::ShapeInferContext*>(context);
    ort::TensorInfo* owned_by_context = nullptr;
    check<ort::ShapeInferInput>(api, reader, size_t{0}, &owned_by_context);
    const ort::TensorInfo* x = owned_by_context;
    size_t count = 0;
    check<ort::GetDimensionsCount>(api, x, &count);
    if (count == 0) return;
    std::vector<int64_t> shape(count);
    std::vector<const char*> symbols(count, nullptr);
    check<ort::GetDimensions>(api, x, shape.data(), count);
    check<ort::GetSymbolicDimensions>(api, x, symbols.data(), count);
    const ort::OpAttribute* attribute = nullptr;
    const char* name = "out_features";
    check<ort::ShapeInferAttribute>(api, reader, name, &attribute);
    size_t read = 0;
    void* last = &shape.back();
    check<ort::ReadAttribute>(api, attribute, ort::kAttributeInt, last, sizeof(int64_t), &read);
    symbols.back() = "";
    for (const char*& symbol : symbols) symbol = symbol == nullptr ? "" : symbol;
    set_output_shape(api, reader, shape, &symbols);
  });
}

ort::ElementType input_type(const ort::CustomOp*, size_t input) {
  switch (input) {
    case kWeight:
    case kAbsmax:
      return ort::kAnyType;
    case kBank:
      return ort::kUint8;
    case kSlot:
      return ort::kInt64;
    default:
      return ort::kFloat;
  }
}

ort::CustomOp make_op() {
  ort::CustomOp op = {};
  op.version = ort::kApiVersion;
  op.name = [](const ort::CustomOp*) { return "QuantLowRankMatMul"; };
  op.execution_provider = [](const ort::CustomOp*) -> const char* {
    return "CPUExecutionProvider";
  };
  op.input_type = input_type;
  op.input_count = [](const ort::CustomOp*) { return size_t{kInputCount}; };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.output_count = [](const ort::CustomOp*) { return size_t{1}; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.input_presence = [](const ort::CustomOp*, size_t input) {
    return input <= kWeight ? ort::kRequired : ort::kOptional;
  };
  op.output_presence = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return ort::kMemoryDefault; };
  op.variadic_input_min = [](const ort::CustomOp*) { return 1; };
  op.variadic_input_homogeneous = [](const ort::CustomOp*) { return 0; };
  op.variadic_output_min = [](const ort::CustomOp*) { return 1; };
  op.variadic_output_homogeneous = [](const ort::CustomOp*) { return 0; };
  op.create_kernel_v2 = create_kernel;
  op.compute_v2 = compute_kernel;
  op.infer_shape = infer_shape;
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return 1; };
  return op;
}

struct Registration {
  ort::CustomOpDomain* domain = nullptr;
  ort::Status* status = nullptr;
};

Registration make_domain(const ort::Api* api) {
  static const ort::CustomOp op = make_op();
  g_api = api;
  Registration made;
  made.status = ort::call<ort::CreateCustomOpDomain>(api, static_cast<const char*>("ai.paretune"),
                                                     &made.domain);
  if (made.status == nullptr)
    made.status = ort::call<ort::CustomOpDomainAdd>(api, made.domain, &op);
  return made;
}

}  // namespace
}  // namespace paretune

extern "C" __attribute__((visibility("default"))) paretune::ort::Status* RegisterCustomOps(
    paretune::ort::SessionOptions* options, const paretune::ort::ApiBase* base) {
  using namespace paretune;
  const ort::Api* api = base->GetApi(ort::kApiVersion);
  // Without an api there is no way to make a status; ONNX Runtime will report the op as unknown.
  if (api == nullptr) return nullptr;
  // Sessions outlive their options and each needs the domain: one per process, never freed.
  static const Registration registration = make_domain(api);
  if (registration.status != nullptr) {
    return ort::call<ort::CreateStatus>(api, ort::kFail,
                                        "the domain ai.paretune is not registered");
  }
  return ort::call<ort::AddCustomOpDomain>(api, options, registration.domain);
}
