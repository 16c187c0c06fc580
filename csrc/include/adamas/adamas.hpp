// The whole public C++ API.
//
// An optimizer updates arrays of yours in place.  It owns only its state, which it reserves when it
// is created, unless you bring it; destroying it frees that.  Nothing throws (but what your own
// schedules throw): calls return a Status, and one that is not ok has changed nothing.  The bits
// are those of the Python package with the same options, on every instruction set and for any
// number of threads.
//
//   types.hpp      options, parameters, gradients and rates: plain data
//   optimizer.hpp  Optimizer: steps, whole, in parts or of accumulated gradients; what can change
//                  between them (groups, steps of parameters, memory, more parameters); its state,
//                  saved, loaded and cloned
//   ranges.hpp     parameters and gradients of vectors, arrays and spans
//   update.hpp     AdamUpdate: steps without an optimizer, over state that you keep
//   schedule.hpp   rates as functions of the step
//   system.hpp     instruction sets, threads, devices
//   status.hpp, span.hpp
//
// A complete program.  With CMake: find_package(adamas CONFIG REQUIRED), then
// target_link_libraries(... adamas::adamas).
//
//   #include <adamas/adamas.hpp>
//   #include <cstdio>
//   #include <vector>
//
//   int main() {
//     std::vector<float> weight(1000, 1.0F), bias(10, 0.0F);
//     adamas::ParameterSpec params[2];
//     params[0].data = weight.data();
//     params[0].count = 1000;
//     params[0].rows = 100;  // needed for sparse gradients and `centralize`
//     params[1].data = bias.data();
//     params[1].count = 10;
//     params[1].rates = 1;  // a group of its own
//
//     adamas::AdamConfig config;
//     config.decoupled_weight_decay = true;  // AdamW
//     config.max_grad_norm = 1.0;            // clip
//     config.row_policy = adamas::RowPolicy::lazy;
//     std::unique_ptr<adamas::Optimizer> optimizer;
//     adamas::Status status = adamas::Optimizer::create(config, {params, 2}, &optimizer);
//     if (!status.ok()) return std::puts(status.message().c_str()), 1;
//
//     // Rates are functions of the step: one entry for each group.
//     adamas::RateSchedule schedules[2];
//     schedules[0].learning_rate = [](double step) { return 1e-3 / (1.0 + 0.1 * step); };
//     schedules[0].weight_decay = adamas::constant(0.01);
//     schedules[1].learning_rate = adamas::constant(1e-2);
//
//     // The gradient of `weight` has two rows, 7 and 42; that of `bias` is dense.
//     std::vector<std::int64_t> rows = {7, 42};
//     std::vector<float> row_values(2 * 10, 0.5F), bias_grad(10, 0.5F);
//     adamas::RowIndices indices{rows.data(), 2};
//     adamas::Gradient grads[2];
//     grads[0].values = row_values.data();
//     grads[0].rows = &indices;
//     grads[1].values = bias_grad.data();
//     for (int i = 0; i < 100; ++i) {
//       status = adamas::step(*optimizer, {grads, 2}, {schedules, 2});
//       if (!status.ok()) return std::puts(status.message().c_str()), 1;
//     }
//     std::printf("%lld steps, norm %.3f, bias %.4f\n",
//                 static_cast<long long>(optimizer->global_step()), optimizer->last_grad_norm(),
//                 bias[0]);
//   }
#pragma once

#include "adamas/cpp17.hpp"
#if __cplusplus >= 201703L  // else that is the only error
#include "adamas/optimizer.hpp"
#include "adamas/ranges.hpp"
#include "adamas/schedule.hpp"
#include "adamas/span.hpp"
#include "adamas/status.hpp"
#include "adamas/system.hpp"
#include "adamas/types.hpp"
#include "adamas/update.hpp"
#endif
