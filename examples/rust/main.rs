//! adamas in Rust, by its C API: no crate, no bindgen, the few declarations that are needed.
//!
//!     rustc -O examples/rust/main.rs -o fit -l adamas \
//!         -L "$(dirname "$(python -m adamas --library)")" \
//!         -C link-arg=-Wl,-rpath,"$(dirname "$(python -m adamas --library)")"
//!     ./fit
//!
//! Fits y = a x + b.  What to look at: `ffi`, which says what adamas/adamas.h says, and `Adam`, which
//! borrows the parameters for as long as it lives and frees itself.

use std::ffi::CStr;
use std::marker::PhantomData;

/// What is used of adamas/adamas.h.  Structs begin with their size, from which the library knows
/// which version of them it was given, and are filled by their `_init` functions.
#[allow(dead_code)] // members that the library alone reads
mod ffi {
    use std::os::raw::{c_char, c_void};

    #[repr(C)]
    #[derive(Clone, Copy)]
    pub struct Status {
        pub code: i32,
        pub index: i64,
        pub text: *const c_char,
    }

    #[repr(C)]
    pub struct Config {
        pub struct_size: usize,
        pub beta1: f64,
        pub beta2: f64,
        pub eps: f64,
        pub loss_scale: f64,
        pub max_grad_norm: f64,
        pub seed: u64,
        pub numerics: i32,
        pub row_policy: i32,
        pub state_format: i32,
        pub num_threads: i32,
        pub use_nesterov: i32,
        pub use_amsgrad: i32,
        pub decoupled_weight_decay: i32,
        pub bias_correction: i32,
        pub master_weights: i32,
        pub use_locking: i32,
        pub skip_nonfinite: i32,
        pub capturable: i32,
        pub use_offload: i32,
        pub maximize: i32,
        pub ema_decay: f64,
        pub epsilon_placement: i32,
        pub allow_zero: i32,
        pub clip_per_array: i32,
        pub clip_after_decay: i32,
        pub writes_delta: i32,
        pub reduction: i32,
    }

    #[repr(C)]
    pub struct Parameter {
        pub struct_size: usize,
        pub data: *mut c_void,
        pub count: i64,
        pub rows: i64,
        pub dtype: i32,
        pub rates: i32,
        pub centralize: i32,
        pub device: i32,
        pub second_axis: i64,
        pub axes: i32,
        pub reserved: i32,
        pub key: i64,
        pub moment1: *mut c_void,
        pub moment2: *mut c_void,
        pub vhat: *mut c_void,
        pub master: *mut c_void,
        pub ema: *mut c_void,
        pub delta: *mut c_void,
    }

    #[repr(C)]
    pub struct Gradient {
        pub struct_size: usize,
        pub values: *const c_void,
        pub indices: *const c_void,
        pub indices_count: i64,
        pub is_sparse: i32,
        pub indices_are_int64: i32,
        pub dtype: i32,
        pub device: i32,
        pub count: i64,
        pub is_absent: i32,
        pub reserved: i32,
    }

    #[repr(C)]
    pub struct Rates {
        pub learning_rate: f64,
        pub weight_decay: f64,
    }

    #[repr(C)]
    pub struct Optimizer {
        _private: [u8; 0],
    }

    extern "C" {
        pub fn adamas_version() -> *const c_char;
        pub fn adamas_config_init(config: *mut Config, struct_size: usize);
        pub fn adamas_parameter_init(parameter: *mut Parameter, struct_size: usize);
        pub fn adamas_gradient_init(gradient: *mut Gradient, struct_size: usize);
        pub fn adamas_create(
            config: *const Config,
            parameters: *const Parameter,
            count: usize,
            optimizer: *mut *mut Optimizer,
        ) -> Status;
        pub fn adamas_destroy(optimizer: *mut Optimizer);
        pub fn adamas_step(
            optimizer: *mut Optimizer,
            grads: *const Gradient,
            count: usize,
            rates: *const Rates,
            rates_count: usize,
            queueing: *const c_void,
        ) -> Status;
        pub fn adamas_global_step(optimizer: *const Optimizer) -> i64;
    }
}

/// A struct of the library, as its `_init` function fills it.
fn filled<T>(init: unsafe extern "C" fn(*mut T, usize)) -> T {
    let mut value = std::mem::MaybeUninit::<T>::zeroed();
    unsafe {
        init(value.as_mut_ptr(), std::mem::size_of::<T>());
        value.assume_init()
    }
}

fn text_of(text: *const std::os::raw::c_char) -> String {
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

fn checked(status: ffi::Status) -> Result<(), String> {
    match status.code {
        0 => Ok(()),
        code => Err(format!(
            "{} (code {}, position {})",
            text_of(status.text),
            code,
            status.index
        )),
    }
}

/// An optimizer over arrays of f32, which the library updates through pointers: a step takes them
/// mutably, so that nobody can hold references into them meanwhile.
struct Adam {
    handle: *mut ffi::Optimizer,
    places: Vec<(*const f32, usize)>,
    _not_sync: PhantomData<*mut ()>,
}

impl Adam {
    fn new(config: &ffi::Config, parameters: &mut [&mut [f32]]) -> Result<Adam, String> {
        let mut specs = Vec::new();
        for array in parameters.iter_mut() {
            let mut spec = filled(ffi::adamas_parameter_init);
            spec.data = array.as_mut_ptr().cast();
            spec.count = array.len() as i64;
            specs.push(spec);
        }
        let mut handle = std::ptr::null_mut();
        checked(unsafe { ffi::adamas_create(config, specs.as_ptr(), specs.len(), &mut handle) })?;
        let places = parameters
            .iter()
            .map(|array| (array.as_ptr(), array.len()))
            .collect();
        Ok(Adam {
            handle,
            places,
            _not_sync: PhantomData,
        })
    }

    /// One step; the parameters are those of `new`, at the same place.
    fn step(
        &mut self,
        parameters: &mut [&mut [f32]],
        grads: &[&[f32]],
        learning_rate: f64,
    ) -> Result<(), String> {
        if parameters
            .iter()
            .map(|array| (array.as_ptr(), array.len()))
            .ne(self.places.iter().copied())
        {
            return Err("the parameters are not those of the optimizer".to_string());
        }
        let mut list = Vec::new();
        for values in grads {
            let mut grad = filled(ffi::adamas_gradient_init);
            grad.values = values.as_ptr().cast();
            grad.count = values.len() as i64;
            list.push(grad);
        }
        let rates = ffi::Rates {
            learning_rate,
            weight_decay: 0.0,
        };
        let queueing = std::ptr::null();
        checked(unsafe {
            ffi::adamas_step(self.handle, list.as_ptr(), list.len(), &rates, 1, queueing)
        })
    }

    fn steps(&self) -> i64 {
        unsafe { ffi::adamas_global_step(self.handle) }
    }
}

impl Drop for Adam {
    fn drop(&mut self) {
        unsafe { ffi::adamas_destroy(self.handle) }
    }
}

fn main() -> Result<(), String> {
    println!("adamas {}", text_of(unsafe { ffi::adamas_version() }));
    let xs: Vec<f32> = (0..100).map(|i| i as f32 / 50.0 - 1.0).collect();
    let ys: Vec<f32> = xs.iter().map(|x| 3.0 * x - 2.0).collect();
    let (mut a, mut b) = ([0.0f32], [0.0f32]);

    let mut config = filled(ffi::adamas_config_init);
    config.beta2 = 0.99;
    let mut adam = Adam::new(&config, &mut [&mut a, &mut b])?;
    for step in 0..500 {
        let (mut grad_a, mut grad_b) = ([0.0f32], [0.0f32]);
        for (x, y) in xs.iter().zip(&ys) {
            let error = a[0] * x + b[0] - y;
            grad_a[0] += error * x / xs.len() as f32;
            grad_b[0] += error / xs.len() as f32;
        }
        let learning_rate = 0.1 / (1.0 + step as f64 / 100.0);
        adam.step(&mut [&mut a, &mut b], &[&grad_a, &grad_b], learning_rate)?;
    }
    println!("{} steps: y = {:.3} x + {:.3}", adam.steps(), a[0], b[0]);

    // A step that is refused says why, and changes nothing.
    let before = (a, b);
    let refused = adam.step(&mut [&mut a, &mut b], &[&[1.0, 2.0], &[1.0]], 0.1);
    println!("refused: {}", refused.unwrap_err());
    assert_eq!(before, (a, b));
    Ok(())
}
