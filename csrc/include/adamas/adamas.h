/* adamas in C, for programs in C and for bindings of other languages.
 *
 * The functions are those of the C++ API, whose headers say more: optimizer.hpp on steps and state,
 * update.hpp on steps without an optimizer, types.hpp on options, NUMERICS.md on what is computed.
 * In the order below: create, groups, add; steps, of accumulated gradients and in parts; counters
 * and steps of parameters; state, saved, loaded, cloned; devices; adamas_update; what this machine
 * has.
 *
 *   - A function that can fail returns an adamas_status.  After a failure nothing has changed.
 *   - Options are structs that an adamas_..._init function fills first.  It writes struct_size, so
 *     that later versions can add members at the end: a program that was compiled with a shorter
 *     struct gets the defaults of the new members, and one that sets members which this library
 *     does not know yet gets ADAMAS_INVALID_ARGUMENT.  Members named `reserved` are 0.
 *   - Enumerations, flags (0 or 1) and devices are int32_t.
 *   - Memory is the caller's and must outlive the optimizer: parameters, and state that they bring.
 *     Gradients are only read, during the call (on a device, until the step is done).
 *   - Calls on one optimizer may come from several threads.
 *
 * A complete program (cc program.c -ladamas):
 *
 *   #include <adamas/adamas.h>
 *   #include <stdio.h>
 *
 *   int main(void) {
 *     float weight[4] = {1, 1, 1, 1};
 *     const float grad[4] = {0.5f, -0.5f, 0.25f, 0};
 *
 *     adamas_config config;
 *     adamas_config_init(&config, sizeof config);
 *     config.beta2 = 0.99;
 *     adamas_parameter parameter;
 *     adamas_parameter_init(&parameter, sizeof parameter);
 *     parameter.data = weight;
 *     parameter.count = 4;
 *     adamas_gradient gradient;
 *     adamas_gradient_init(&gradient, sizeof gradient);
 *     gradient.values = grad;
 *     gradient.count = 4;
 *
 *     adamas_optimizer* optimizer = NULL;
 *     adamas_status status = adamas_create(&config, &parameter, 1, &optimizer);
 *     for (int i = 0; i < 10 && status.code == ADAMAS_OK; ++i) {
 *       const adamas_rates rates = {1e-2 / (1 + i), 0.0};
 *       status = adamas_step(optimizer, &gradient, 1, &rates, 1, NULL);
 *     }
 *     if (status.code != ADAMAS_OK) {
 *       printf("%s (position %lld)\n", status.text, (long long)status.index);
 *       return 1;
 *     }
 *     printf("%lld steps: %.4f %.4f %.4f %.4f\n", (long long)adamas_global_step(optimizer),
 *            weight[0], weight[1], weight[2], weight[3]);
 *     adamas_destroy(optimizer);
 *     return 0;
 *   }
 */
#ifndef ADAMAS_ADAMAS_H
#define ADAMAS_ADAMAS_H

#include <stddef.h>
#include <stdint.h>

#include "adamas/api.h"

#ifdef __cplusplus
extern "C" {
#endif

/* StatusCode */
enum {
  ADAMAS_OK = 0,
  ADAMAS_INVALID_ARGUMENT = 1, /* a value, a count or a null pointer */
  ADAMAS_OVERLAP = 2,          /* two arrays share memory that must not */
  ADAMAS_BAD_INDEX = 3,        /* a row index outside the parameter */
  ADAMAS_BAD_STATE = 4,        /* the call does not fit the calls before it */
  ADAMAS_OUT_OF_MEMORY = 5,
  ADAMAS_UNAVAILABLE = 6, /* this machine or this build cannot do it */
  ADAMAS_DEVICE_ERROR = 7 /* a CUDA device failed */
};

typedef struct adamas_status {
  int32_t code;
  int64_t index;    /* the position in the list of parameters that is meant, or -1 */
  const char* text; /* what is wrong; stays valid, never null */
} adamas_status;

/* DType */
enum { ADAMAS_FLOAT32 = 0, ADAMAS_FLOAT64 = 1, ADAMAS_FLOAT16 = 2, ADAMAS_BFLOAT16 = 3 };

/* RowPolicy */
enum { ADAMAS_ROWS_EXACT = 0, ADAMAS_ROWS_LAZY = 1, ADAMAS_ROWS_CATCH_UP = 2 };

/* Numerics */
enum { ADAMAS_NUMERICS_STANDARD = 0, ADAMAS_NUMERICS_MINDSPORE = 1 };

/* Reduction */
enum { ADAMAS_REDUCTION_MEAN = 0, ADAMAS_REDUCTION_SUM = 1 };

/* EpsilonPlacement */
enum { ADAMAS_EPSILON_OUTSIDE = 0, ADAMAS_EPSILON_INSIDE = 1 };

/* StateFormat */
enum { ADAMAS_STATE_REAL = 0, ADAMAS_STATE_BFLOAT16 = 1, ADAMAS_STATE_INT8 = 2 };

/* StateKind */
enum {
  ADAMAS_MOMENT1 = 0,
  ADAMAS_MOMENT2 = 1,
  ADAMAS_VHAT = 2,
  ADAMAS_MASTER = 3,
  ADAMAS_ROW_STEP = 4,
  ADAMAS_SCALE1 = 5,
  ADAMAS_SCALE2 = 6,
  ADAMAS_EMA = 7
};

/* The device of memory of the host; CUDA devices are 0, 1, ... */
#define ADAMAS_CPU (-1)

/* AdamConfig */
typedef struct adamas_config {
  size_t struct_size;
  double beta1;
  double beta2;
  double eps;
  double loss_scale;
  double max_grad_norm; /* 0: do not clip; of a group: over its own gradients */
  uint64_t seed;
  int32_t numerics;
  int32_t row_policy;
  int32_t state_format;
  int32_t num_threads; /* 0: adamas_available_threads() */
  int32_t use_nesterov;
  int32_t use_amsgrad;
  int32_t decoupled_weight_decay;
  int32_t bias_correction;
  int32_t master_weights;
  int32_t use_locking;
  int32_t skip_nonfinite;
  int32_t capturable;
  int32_t use_offload;
  int32_t maximize;
  double ema_decay; /* 0: keep no averages */
  int32_t epsilon_placement;
  int32_t allow_zero;       /* of betas and eps */
  int32_t clip_per_array;   /* max_grad_norm is for each gradient by itself */
  int32_t clip_after_decay; /* norms are of gradients with L2 decay added */
  int32_t writes_delta;     /* to adamas_parameter.delta, and leave the parameter */
  int32_t reduction;        /* of accumulated gradients */
} adamas_config;

/* ParameterSpec */
typedef struct adamas_parameter {
  size_t struct_size;
  void* data;
  int64_t count; /* of elements */
  int64_t rows;  /* length of the first axis, which divides count */
  int32_t dtype;
  int32_t rates; /* which element of the rates of a step applies */
  int32_t centralize;
  int32_t device;
  int64_t second_axis; /* its length, if there are two */
  int32_t axes;        /* 0: not said, and `centralize` is done whatever the shape */
  int32_t reserved;    /* 0 */
  int64_t key;         /* of stochastic rounding; -1: the position */
  void* moment1;       /* state of the caller's, used in place; null: it is reserved, zeroed */
  void* moment2;
  void* vhat;
  void* master;
  void* ema;
  void* delta; /* writes_delta: where the change of the parameter is written */
} adamas_parameter;

/* Gradient */
typedef struct adamas_gradient {
  size_t struct_size;
  const void* values;  /* as many as the parameter; or indices_count rows of it */
  const void* indices; /* of rows, int32 or int64; read only if is_sparse */
  int64_t indices_count;
  int32_t is_sparse;
  int32_t indices_are_int64;
  int32_t dtype;
  int32_t device;
  int64_t count;     /* of the elements at `values`, which is checked; -1: not said */
  int32_t is_absent; /* there is none: the parameter is left alone and counts no step */
  int32_t reserved;  /* 0 */
} adamas_gradient;

/* Rates */
typedef struct adamas_rates {
  double learning_rate;
  double weight_decay;
} adamas_rates;

/* Queueing: where a step of parameters on a device is queued. */
typedef struct adamas_queueing {
  size_t struct_size;
  void* stream;       /* a cudaStream_t; null: the default one */
  void* const* after; /* streams whose work until now it waits for */
  size_t after_count;
} adamas_queueing;

/* ArrayCopy: memory to or from which one array of an optimizer is copied as it is stored. */
typedef struct adamas_array_copy {
  size_t parameter;
  int32_t kind; /* of state; ADAMAS_PARAM: the parameter itself */
  void* data;
  size_t nbytes; /* exactly those of the array */
} adamas_array_copy;

#define ADAMAS_PARAM (-1)

/* Counters: what decides later steps besides arrays, options and rates. */
typedef struct adamas_counters {
  size_t struct_size;
  int64_t global_step;
  int64_t skipped_steps;
  double loss_scale;
  double last_grad_norm;
  int32_t last_step_skipped;
  int32_t reserved; /* 0 */
} adamas_counters;

typedef struct adamas_optimizer adamas_optimizer;

/* Fill a struct of `struct_size` bytes (its sizeof) with the defaults. */
ADAMAS_API void adamas_config_init(adamas_config* config, size_t struct_size);
ADAMAS_API void adamas_parameter_init(adamas_parameter* parameter, size_t struct_size);
ADAMAS_API void adamas_gradient_init(adamas_gradient* gradient, size_t struct_size);
ADAMAS_API void adamas_queueing_init(adamas_queueing* queueing, size_t struct_size);
ADAMAS_API void adamas_counters_init(adamas_counters* counters, size_t struct_size);

/* Reserves the state, zeroed.  The memory of the parameters must outlive the optimizer. */
ADAMAS_API adamas_status adamas_create(const adamas_config* config,
                                       const adamas_parameter* parameters, size_t count,
                                       adamas_optimizer** optimizer);

/* The same with options for groups: groups[k] are those of the parameters whose `rates` is k, which
 * may differ from `config` in betas, eps, use_nesterov, use_amsgrad, decoupled_weight_decay,
 * maximize, max_grad_norm (that of the group; 0: none), clip_per_array and clip_after_decay. */
ADAMAS_API adamas_status adamas_create_groups(const adamas_config* config,
                                              const adamas_parameter* parameters, size_t count,
                                              const adamas_config* groups, size_t groups_count,
                                              adamas_optimizer** optimizer);

/* Sets the options of a group for the steps to come; use_amsgrad must stay. */
ADAMAS_API adamas_status adamas_set_group(adamas_optimizer* optimizer, size_t index,
                                          const adamas_config* group);

/* Adds parameters at the end of the list, and groups at the end of theirs. */
ADAMAS_API adamas_status adamas_add(adamas_optimizer* optimizer, const adamas_parameter* parameters,
                                    size_t count, const adamas_config* groups, size_t groups_count);

/* Frees an optimizer; null is allowed. */
ADAMAS_API void adamas_destroy(adamas_optimizer* optimizer);

/* One step: grads[i] is the gradient of parameter i, and rates[k] what the parameters use whose
 * `rates` is k.  `queueing` may be null. */
ADAMAS_API adamas_status adamas_step(adamas_optimizer* optimizer, const adamas_gradient* grads,
                                     size_t count, const adamas_rates* rates, size_t rates_count,
                                     const adamas_queueing* queueing);

/* Adds dense gradients of a micro-batch to sums in float32 (float64 for float64 parameters), from
 * which adamas_step_accumulated makes a step, with their mean, or the sum (`reduction`).  Steps and
 * copies in between are refused, until they are discarded. */
ADAMAS_API adamas_status adamas_accumulate(adamas_optimizer* optimizer,
                                           const adamas_gradient* grads, size_t count,
                                           const adamas_queueing* queueing);
ADAMAS_API adamas_status adamas_step_accumulated(adamas_optimizer* optimizer,
                                                 const adamas_rates* rates, size_t rates_count,
                                                 const adamas_queueing* queueing);
ADAMAS_API int64_t adamas_accumulated(const adamas_optimizer* optimizer);
ADAMAS_API void adamas_discard_accumulated(adamas_optimizer* optimizer);

/* The same step in parts: each parameter is applied once, in any order. */
ADAMAS_API adamas_status adamas_begin_step(adamas_optimizer* optimizer, const adamas_rates* rates,
                                           size_t rates_count);
ADAMAS_API adamas_status adamas_apply(adamas_optimizer* optimizer, size_t index,
                                      const adamas_gradient* grad, const adamas_queueing* queueing);
ADAMAS_API adamas_status adamas_end_step(adamas_optimizer* optimizer);
/* What was not applied is left alone, and counts no step. */
ADAMAS_API adamas_status adamas_end_step_skipping(adamas_optimizer* optimizer);
ADAMAS_API adamas_status adamas_cancel_step(adamas_optimizer* optimizer);

/* What became of the last step, and how many were skipped in all. */
ADAMAS_API int32_t adamas_last_step_skipped(const adamas_optimizer* optimizer);
ADAMAS_API int64_t adamas_skipped_steps(const adamas_optimizer* optimizer);
ADAMAS_API double adamas_last_grad_norm(const adamas_optimizer* optimizer);

/* The number of steps made; setting it moves those of all parameters as far. */
ADAMAS_API int64_t adamas_global_step(const adamas_optimizer* optimizer);
ADAMAS_API adamas_status adamas_set_global_step(adamas_optimizer* optimizer, int64_t step);
/* The steps that each parameter has made, from which its bias correction is; `count` is that of
 * the parameters. */
ADAMAS_API adamas_status adamas_steps(const adamas_optimizer* optimizer, int64_t* steps,
                                      size_t count);
ADAMAS_API adamas_status adamas_set_steps(adamas_optimizer* optimizer, const int64_t* steps,
                                          size_t count);
ADAMAS_API double adamas_loss_scale(const adamas_optimizer* optimizer);
ADAMAS_API adamas_status adamas_set_loss_scale(adamas_optimizer* optimizer, double loss_scale);

/* Whether the row means of a parameter's gradients are subtracted. */
ADAMAS_API int32_t adamas_centralizes(const adamas_optimizer* optimizer, size_t index);

/* The live memory of a state of parameter `index`, or null if none is kept; as it is stored. */
ADAMAS_API void* adamas_state(const adamas_optimizer* optimizer, int32_t kind, size_t index);

/* Writes a moment that is stored in 16 or 8 bits as float32, as many as the parameter has. */
ADAMAS_API adamas_status adamas_decode_moment(const adamas_optimizer* optimizer, int32_t kind,
                                              size_t index, float* values);

/* Copies arrays out of the optimizer, or into it, and all counters, as one call among the steps:
 * what is saved is the state between two of them.  Steps of parameters are not among the counters:
 * adamas_steps and adamas_set_steps have them; loaded, all are global_step. */
ADAMAS_API adamas_status adamas_save(const adamas_optimizer* optimizer, const adamas_array_copy* to,
                                     size_t count, adamas_counters* counters);
ADAMAS_API adamas_status adamas_load(adamas_optimizer* optimizer, const adamas_array_copy* from,
                                     size_t count, const adamas_counters* counters);

/* A second optimizer, over `parameters` of its own, which are like those of the first in all but
 * memory and device.  It has the same options, counters and steps, and copies of the state; the
 * values of the parameters are the caller's to copy. */
ADAMAS_API adamas_status adamas_clone(const adamas_optimizer* optimizer,
                                      const adamas_parameter* parameters, size_t count,
                                      adamas_optimizer** clone);

/* How many elements share a scale (ADAMAS_STATE_INT8), else 0. */
ADAMAS_API int64_t adamas_scale_block(const adamas_optimizer* optimizer, size_t index);
ADAMAS_API size_t adamas_state_nbytes(const adamas_optimizer* optimizer);

/* Copies between the device and the host, after all steps so far, waiting until it is done. */
ADAMAS_API adamas_status adamas_read_device(const adamas_optimizer* optimizer, const void* device,
                                            void* host, size_t nbytes);
ADAMAS_API adamas_status adamas_write_device(adamas_optimizer* optimizer, void* device,
                                             const void* host, size_t nbytes);

/* What steps captured in CUDA graphs use from here on (capturable). */
ADAMAS_API adamas_status adamas_set_rates(adamas_optimizer* optimizer, const adamas_rates* rates,
                                          size_t rates_count, void* stream);

/* One step over arrays of the caller's, without an optimizer (update.hpp): the parameters have all
 * state that the options keep, and steps[i] is how many steps parameter i has made, which each then
 * counts.  `groups` as adamas_create_groups has them.  *skipped, if not null: whether a NaN or
 * infinity has cancelled the step (skip_nonfinite). */
ADAMAS_API adamas_status adamas_update(const adamas_config* config,
                                       const adamas_parameter* parameters,
                                       const adamas_gradient* grads, int64_t* steps, size_t count,
                                       const adamas_rates* rates, size_t rates_count,
                                       const adamas_config* groups, size_t groups_count,
                                       int32_t* skipped);

/* What was built and what this machine offers. */
ADAMAS_API const char* adamas_version(void);
ADAMAS_API const char* adamas_isa_in_use(void);
ADAMAS_API adamas_status adamas_select_isa(const char* name);
/* How many threads an optimizer uses that is not told: system.hpp, default_threads(). */
ADAMAS_API int32_t adamas_available_threads(void);
ADAMAS_API int32_t adamas_cuda_devices(void);
ADAMAS_API const char* adamas_cuda_unavailable_reason(void); /* null: a device can be used */

#ifdef __cplusplus
}
#endif

#endif
