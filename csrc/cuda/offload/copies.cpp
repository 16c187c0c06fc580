#include "cuda/offload/copies.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "cuda/device/library.hpp"

namespace adamas::cuda {
namespace {

std::size_t nbytes_of(const ParameterSpec& spec) {
  return static_cast<std::size_t>(spec.count) * item_size(spec.dtype);
}

std::size_t index_nbytes(const RowIndices& rows) {
  return static_cast<std::size_t>(rows.count) * (rows.is_int64 ? 8 : 4);
}

}  // namespace

// The copies share no memory, so that the arrays themselves must be looked at.
Status Offload::sort_ranges(Span<const ParameterSpec> parameters) {
  std::vector<std::pair<core::Range, std::int64_t>> ranges;
  for (std::size_t i = 0; i < parameters.size; ++i) {
    if (parameters[i].count == 0) continue;
    ranges.push_back({core::range_of(parameters[i].data, nbytes_of(parameters[i])),
                      static_cast<std::int64_t>(i)});
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  for (std::size_t k = 0; k < ranges.size(); ++k) {
    ranges_.push_back(ranges[k].first);
    if (k == 0 || ranges[k].first.begin >= ranges[k - 1].first.end) continue;
    return {StatusCode::overlap, "a parameter shares memory with another",
            std::max(ranges[k].second, ranges[k - 1].second)};
  }
  return {};
}

bool Offload::overlaps(const void* data, std::size_t nbytes) const noexcept {
  const core::Range range = core::range_of(data, nbytes);
  const auto next =
      std::upper_bound(ranges_.begin(), ranges_.end(), range,
                       [](const core::Range& a, const core::Range& b) { return a.begin < b.end; });
  return nbytes > 0 && next != ranges_.end() && next->begin < range.end;
}

Status Offload::open(Span<const ParameterSpec> parameters, std::unique_ptr<Offload>* offload,
                     std::vector<ParameterSpec>* specs) {
  const DeviceApi* api = library();
  if (api == nullptr) return {StatusCode::unavailable, "CUDA can't be used"};
  std::unique_ptr<Offload> made(new Offload);
  if (Status status = made->sort_ranges(parameters); !status.ok()) return status;
  made->device_ = {api, parameters[0].device};
  const Device& device = made->device_;
  Error error = made->down_.create(device, Handle::Kind::stream);
  if (error == 0) error = made->up_.create(device, Handle::Kind::stream);
  if (error == 0) error = made->before_.create(device, Handle::Kind::event);
  if (error == 0) error = made->after_.create(device, Handle::Kind::event);
  for (const ParameterSpec& spec : parameters) {
    if (error != 0) break;
    Copy& copy = *made->copies_.emplace_back(std::make_unique<Copy>());
    copy.device = spec;
    error = copy.arrived.create(device, Handle::Kind::event);
    if (error == 0 && spec.count > 0) {
      error = copy.param.create(device, Handle::Kind::pinned, nbytes_of(spec));
    }
    specs->push_back(spec);
    specs->back().data = copy.param.get();
    specs->back().device = kCpu;
  }
  if (error != 0) return device.status(error);
  // Master weights are loaded from the copies.
  const DeviceScope scope(device);
  Queue queue(device, made->down_.get());
  queue.note(scope.error());
  void* const default_stream = nullptr;
  queue.wait_for_streams({&default_stream, 1}, made->before_.get());
  for (const auto& copy : made->copies_) {
    queue.copy(copy->param.get(), copy->device.data, nbytes_of(copy->device));
  }
  queue.finish();
  if (queue.error() == 0) *offload = std::move(made);
  return queue.status();
}

Offload::~Offload() {
  if (device_.api == nullptr) return;
  const DeviceScope scope(device_);
  for (const Handle* stream : {&down_, &up_}) {
    if (stream->get() != nullptr) device_.api->wait_for_stream(stream->get());
  }
}

Status Offload::check_usable() const {
  if (!broken_) return {};
  return {StatusCode::device_error,
          "the device failed in an earlier step, so the parameters and the state can't be relied "
          "on: make a new optimizer"};
}

std::size_t Offload::grad_nbytes(const ParameterSpec& spec, const Gradient& grad) {
  const std::int64_t row_length = spec.rows > 0 ? spec.count / spec.rows : 0;
  const std::int64_t count = grad.rows == nullptr ? spec.count : grad.rows->count * row_length;
  return static_cast<std::size_t>(count) * item_size(grad.dtype);
}

Status Offload::reserve(Handle& memory, std::size_t* size, std::size_t nbytes) noexcept {
  if (nbytes <= *size) return {};
  Handle fresh;
  if (Error error = fresh.create(device_, Handle::Kind::pinned, nbytes)) {
    return device_.status(error);
  }
  memory.swap(fresh);
  *size = nbytes;
  return {};
}

Status Offload::place(std::size_t first, Span<const Gradient> grads) noexcept {
  first_ = first;
  try {
    grads_.assign(grads.begin(), grads.end());
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the step"};
  }
  for (std::size_t k = 0; k < grads.size; ++k) {
    const Gradient& grad = grads[k];
    Copy& copy = *copies_[first + k];
    const auto index = static_cast<std::int64_t>(first + k);
    if (grad.device != copy.device.device) {
      return {StatusCode::invalid_argument, "a gradient must be where its parameter is", index};
    }
    if (grad.rows != nullptr && grad.rows->count < 0) {
      return {StatusCode::invalid_argument, "a number of rows is negative", index};
    }
    const std::size_t nbytes = grad_nbytes(copy.device, grad);
    if (overlaps(grad.values, nbytes)) {
      return {StatusCode::overlap, "a gradient shares memory with a parameter or the state", index};
    }
    Status status = reserve(copy.grad, &copy.grad_nbytes, nbytes);
    copy.from = grad;
    if (grad.rows != nullptr) {
      copy.from_rows = *grad.rows;
      if (status.ok()) {
        status = reserve(copy.indices, &copy.indices_nbytes, index_nbytes(*grad.rows));
      }
      copy.rows = *grad.rows;
      copy.rows.data = copy.indices.get();
      grads_[k].rows = &copy.rows;
    }
    if (!status.ok()) return status;
    grads_[k].values = nbytes == 0 || grad.values == nullptr ? nullptr : copy.grad.get();
    grads_[k].device = kCpu;
  }
  return {};
}

Status Offload::fetch(const Queueing& queueing) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, down_.get());
  queue.note(scope.error());
  queue.wait_for_streams({&queueing.stream, 1}, before_.get());
  queue.wait_for_streams(queueing.after, before_.get());
  if (has_sent_) queue.wait_for(after_.get());
  for (std::size_t k = 0; k < grads_.size(); ++k) {
    const Copy& copy = *copies_[first_ + k];
    queue.copy(copy.param.get(), copy.device.data, nbytes_of(copy.device));
    queue.copy(copy.grad.get(), copy.from.values, grad_nbytes(copy.device, copy.from));
    if (copy.from.rows != nullptr) {
      queue.copy(copy.indices.get(), copy.from_rows.data, index_nbytes(copy.from_rows));
    }
    queue.record(copy.arrived.get());
  }
  return queue.status();
}

Status Offload::wait(std::size_t i) noexcept {
  const DeviceScope scope(device_);
  return device_.status(device_.api->wait_for_event(copies_[i]->arrived.get()));
}

Status Offload::send(std::size_t i) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, up_.get());
  queue.note(scope.error());
  const Copy& copy = *copies_[i];
  queue.copy(copy.device.data, copy.param.get(), nbytes_of(copy.device));
  return queue.status();
}

Status Offload::read(std::size_t i) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, down_.get());
  queue.note(scope.error());
  void* const default_stream = nullptr;
  queue.wait_for_streams({&default_stream, 1}, before_.get());
  if (has_sent_) queue.wait_for(after_.get());
  const Copy& copy = *copies_[i];
  queue.copy(copy.param.get(), copy.device.data, nbytes_of(copy.device));
  queue.finish();
  return queue.status();
}

Status Offload::write(std::size_t i) noexcept {
  if (Status status = send(i); !status.ok()) return status;
  return finish(up_.get(), true);
}

Status Offload::finish(Stream stream, bool now) noexcept {
  const DeviceScope scope(device_);
  Queue up(device_, up_.get());
  up.note(scope.error());
  up.record(after_.get());
  has_sent_ = up.error() == 0;
  if (now) up.finish();
  if (up.error() != 0) return up.status();
  Queue queue(device_, stream);
  queue.wait_for(after_.get());
  return queue.status();
}

}  // namespace adamas::cuda
