#include "cuda/offload/copies.hpp"

#include <algorithm>
#include <new>

namespace adamas::cuda {
namespace {

std::size_t index_nbytes(const RowIndices& rows) {
  return static_cast<std::size_t>(rows.count) * (rows.is_int64 ? 8 : 4);
}

std::size_t nbytes_of(const core::Tensor& tensor, const Gradient& grad) {
  const std::int64_t count =
      grad.rows == nullptr ? tensor.spec.count : grad.rows->count * tensor.row_length;
  return static_cast<std::size_t>(count) * item_size(grad.dtype);
}

}  // namespace

Status OffloadCopies::open(std::int32_t device) {
  if (Status status = open_device(device, &device_); !status.ok()) return status;
  Error error = down_.create(device_, Handle::Kind::stream);
  if (error == 0) error = up_.create(device_, Handle::Kind::stream);
  if (error == 0) error = before_.create(device_, Handle::Kind::event);
  if (error == 0) error = after_.create(device_, Handle::Kind::event);
  return device_.status(error);
}

OffloadCopies::~OffloadCopies() {
  if (device_.api == nullptr) return;
  const DeviceScope scope(device_);
  for (const Handle* stream : {&down_, &up_}) {
    if (stream->get() != nullptr) device_.api->wait_for_stream(stream->get());
  }
}

// Queues `work` on the way down, after the default stream and others.
template <class Work>
Status OffloadCopies::queue_down(Span<void* const> after, Work work) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, down_.get());
  queue.note(scope.error());
  queue.wait_for_streams(after, before_.get());
  if (has_sent_) queue.wait_for(after_.get());
  work(queue);
  return queue.status();
}

Status OffloadCopies::extend(const std::vector<core::Tensor>& tensors, Span<void* const> after) {
  const std::size_t first = tensors_.size();
  tensors_.insert(tensors_.end(), tensors.begin() + static_cast<std::ptrdiff_t>(first),
                  tensors.end());
  for (std::size_t i = first; i < tensors_.size(); ++i) {
    core::Tensor& tensor = tensors_[i];
    Copy& copy = *copies_.emplace_back(std::make_unique<Copy>());
    copy.device_param = tensor.spec.data;
    copy.nbytes = tensor.nbytes;
    Error error = copy.arrived.create(device_, Handle::Kind::event);
    if (error == 0 && copy.nbytes > 0) {
      error = copy.param.create(device_, Handle::Kind::pinned, copy.nbytes);
    }
    if (error != 0) return device_.status(error);
    tensor.spec.data = copy.param.get();
    tensor.spec.device = kCpu;
  }
  std::vector<void*> streams(after.begin(), after.end());
  streams.push_back(nullptr);  // the default one
  return queue_down(streams, [&](Queue& queue) {
    for (std::size_t i = first; i < copies_.size(); ++i) {
      const Copy& copy = *copies_[i];
      queue.copy(copy.param.get(), copy.device_param, copy.nbytes);
    }
    queue.finish();
  });
}

void OffloadCopies::drop(std::size_t first) noexcept {
  tensors_.resize(std::min(first, tensors_.size()));
  copies_.resize(std::min(first, copies_.size()));
}

Status OffloadCopies::reserve(Handle& memory, std::size_t* size, std::size_t nbytes) noexcept {
  if (nbytes <= *size) return {};
  Handle fresh;
  if (Error error = fresh.create(device_, Handle::Kind::pinned, nbytes)) {
    return device_.status(error);
  }
  memory.swap(fresh);
  *size = nbytes;
  return {};
}

Status OffloadCopies::stage(const core::Selection& selection, core::Selection* staged) noexcept {
  first_ = selection.first;
  const std::size_t count = selection.last - selection.first;
  try {
    grads_.assign(selection.grads, selection.grads + count);
  } catch (const std::bad_alloc&) {
    return {StatusCode::out_of_memory, "no memory for the step"};
  }
  for (std::size_t k = 0; k < count; ++k) {
    Status status = stage(tensors_[first_ + k], *copies_[first_ + k], &grads_[k]);
    if (!status.ok()) return status;
  }
  *staged = selection;
  staged->grads = grads_.data();
  return {};
}

Status OffloadCopies::stage(const core::Tensor& tensor, Copy& copy, Gradient* grad) noexcept {
  const std::size_t nbytes = nbytes_of(tensor, *grad);
  copy.from = *grad;
  if (grad->is_absent) return {};
  if (Status status = reserve(copy.grad, &copy.grad_nbytes, nbytes); !status.ok()) return status;
  if (grad->rows != nullptr) {
    copy.from_rows = *grad->rows;
    Status status = reserve(copy.indices, &copy.indices_nbytes, index_nbytes(*grad->rows));
    if (!status.ok()) return status;
    copy.rows = *grad->rows;
    copy.rows.data = copy.indices.get();
    grad->rows = &copy.rows;
  }
  grad->values = nbytes == 0 ? nullptr : copy.grad.get();
  grad->device = kCpu;
  return {};
}

Status OffloadCopies::fetch(const core::Ordering& ordering, bool with_parameters) noexcept {
  ordering.wait_for_last();
  return queue_down({&ordering.queueing.stream, 1}, [&](Queue& queue) {
    queue.wait_for_streams(ordering.queueing.after, before_.get());
    for (std::size_t k = 0; k < grads_.size(); ++k) {
      const std::size_t i = first_ + k;
      const Copy& copy = *copies_[i];
      if (copy.from.is_absent) continue;
      if (with_parameters) queue.copy(copy.param.get(), copy.device_param, copy.nbytes);
      queue.copy(copy.grad.get(), copy.from.values, nbytes_of(tensors_[i], copy.from));
      if (copy.from.rows != nullptr) {
        queue.copy(copy.indices.get(), copy.from_rows.data, index_nbytes(copy.from_rows));
      }
      queue.record(copy.arrived.get());
    }
  });
}

Status OffloadCopies::wait(std::size_t i) noexcept {
  const DeviceScope scope(device_);
  return device_.status(device_.api->wait_for_event(copies_[i]->arrived.get()));
}

Status OffloadCopies::send(std::size_t i) noexcept {
  const DeviceScope scope(device_);
  Queue queue(device_, up_.get());
  queue.note(scope.error());
  const Copy& copy = *copies_[i];
  queue.copy(copy.device_param, copy.param.get(), copy.nbytes);
  return queue.status();
}

Status OffloadCopies::read(std::size_t i) noexcept {
  void* const default_stream = nullptr;
  return queue_down({&default_stream, 1}, [&](Queue& queue) {
    const Copy& copy = *copies_[i];
    queue.copy(copy.param.get(), copy.device_param, copy.nbytes);
    queue.finish();
  });
}

Status OffloadCopies::write(std::size_t i) noexcept {
  if (Status status = send(i); !status.ok()) return status;
  return finish(up_.get(), true);
}

Status OffloadCopies::finish(Stream stream, bool now) noexcept {
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
