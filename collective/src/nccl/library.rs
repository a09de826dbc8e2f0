//! NCCL itself, loaded when a group asks for it.
//!
//! `cudarc` has bindings, but looks for `libnccl.so` only, which run-time images do not have (the
//! library's own name is `libnccl.so.2`), and panics on a missing symbol. So the ten symbols that
//! are needed are looked up here, and the device's memory and stream are `cudarc`'s. Not yet run on
//! a GPU.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DevicePtrMut, DriverError};
use palimpsest_kernels::sums::{Place as SumPlace, Summand};

use super::api::{Api, ApiError, Call, Element, Operation, UniqueId};
use crate::place::Place;

/// Names of the library, in the order in which they are tried.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The oldest version that non-blocking communicators and their abort are safe with (NCCL issue
/// 992).
const LEAST_VERSION: u32 = 21_901;

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;

type Comm = *mut c_void;
type Stream = *mut c_void;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; 128]);

/// `ncclConfig_t` as of 2.17: later libraries take a shorter one for what it is, by `size` and
/// `version`.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Not blocking, everything else left to the library.
    fn non_blocking() -> Self {
        let undefined = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21_700,
            blocking: 0,
            cga_cluster_size: undefined,
            min_ctas: undefined,
            max_ctas: undefined,
            net_name: std::ptr::null(),
            split_share: undefined,
        }
    }
}

type Reduce =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;

/// The symbols, as `nccl.h` declares them.
struct Functions {
    get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    get_unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    init_rank_config: unsafe extern "C" fn(*mut Comm, c_int, Id, c_int, *mut Config) -> c_int,
    get_async_error: unsafe extern "C" fn(Comm, *mut c_int) -> c_int,
    abort: unsafe extern "C" fn(Comm) -> c_int,
    all_reduce: Reduce,
    all_gather:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int,
    broadcast: Reduce,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    /// Keeps the symbols valid.
    _library: libloading::Library,
}

/// NCCL for one GPU.
pub struct Library {
    functions: Functions,
    context: Arc<CudaContext>,
}

/// A communicator, its stream and its buffers.
pub struct NcclComm {
    raw: Comm,
    world_size: usize,
    stream: Arc<CudaStream>,
    call: Mutex<UnderWay>,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time; `NcclCollective` holds a lock
// around each call.
unsafe impl Send for NcclComm {}

#[derive(Default)]
struct UnderWay {
    send: Option<CudaSlice<u8>>,
    receive: Option<CudaSlice<u8>>,
    /// Recorded after the collective was put on the stream.
    done: Option<CudaEvent>,
    /// Where the result of the call under way will be.
    result: Option<Holder>,
}

/// Which buffer holds the result.
#[derive(Clone, Copy)]
enum Holder {
    InSend,
    InReceive,
}

fn driver(error: DriverError) -> ApiError {
    ApiError::Failed(format!("CUDA: {error}"))
}

impl Library {
    /// Loads NCCL for GPU `ordinal`.
    ///
    /// # Errors
    /// [`ApiError::Unsupported`] when library, driver or GPU are missing, or the library is too
    /// old.
    pub fn open(ordinal: usize) -> Result<Self, ApiError> {
        let functions = Functions::load()?;
        let unsupported = |why: String| ApiError::Unsupported(why);
        // SAFETY: loading the driver runs its initialisers, which is what it is for.
        if !unsafe { cudarc::driver::sys::is_culib_present() } {
            return Err(unsupported(
                "no CUDA driver on this machine (libcuda.so.1 was not found)".into(),
            ));
        }
        let context = CudaContext::new(ordinal)
            .map_err(|error| unsupported(format!("GPU {ordinal}: {error}")))?;
        let library = Self { functions, context };
        let version = library.version()?;
        if version < LEAST_VERSION {
            let [have, want] = [version, LEAST_VERSION].map(super::api::dotted);
            return Err(unsupported(format!(
                "libnccl.so.2 is {have}; at least {want} is needed"
            )));
        }
        Ok(library)
    }

    fn check(&self, comm: Option<Comm>, result: c_int) -> Result<(), ApiError> {
        if result == SUCCESS || result == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: takes any number and returns a string of the library's own.
        let mut text = unsafe { read((self.functions.error_string)(result)) };
        if let Some(comm) = comm {
            // SAFETY: `comm` is alive; the string is the library's own and read before another
            // call.
            let last = unsafe { read((self.functions.last_error)(comm)) };
            if !last.is_empty() {
                text = format!("{text} ({last})");
            }
        }
        const INVALID_USAGE: c_int = 5;
        Err(if result == INVALID_USAGE {
            ApiError::Usage(text)
        } else {
            ApiError::Failed(text)
        })
    }

    /// Whether NCCL has taken up all calls made so far.
    fn is_settled(&self, comm: Comm) -> Result<bool, ApiError> {
        let mut state = SUCCESS;
        // SAFETY: `comm` is alive, and `state` is written before the call returns.
        let result = unsafe { (self.functions.get_async_error)(comm, &raw mut state) };
        self.check(Some(comm), result)?;
        self.check(Some(comm), state)?;
        Ok(state != IN_PROGRESS)
    }

    /// Room for at least `bytes`, kept from call to call.
    fn room<'a>(
        stream: &Arc<CudaStream>,
        buffer: &'a mut Option<CudaSlice<u8>>,
        bytes: usize,
    ) -> Result<&'a mut CudaSlice<u8>, ApiError> {
        if buffer.as_ref().is_none_or(|buffer| buffer.len() < bytes) {
            *buffer = Some(
                stream
                    .alloc_zeros(bytes.next_power_of_two())
                    .map_err(driver)?,
            );
        }
        Ok(buffer.as_mut().expect("it was just made"))
    }
}

/// A C string of the library.
///
/// # Safety
/// `text` is null or a string that ends with zero and lives until this returns.
unsafe fn read(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

impl Functions {
    fn load() -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        for name in NAMES {
            // SAFETY: loading the library runs its initialisers, which is what it is for.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Self::of(library),
                Err(error) => errors.push(error.to_string()),
            }
        }
        Err(ApiError::Unsupported(format!(
            "neither {} was found ({}): install NCCL, or set LD_LIBRARY_PATH to where it is",
            NAMES.join(" nor "),
            errors.join("; ")
        )))
    }

    fn of(library: libloading::Library) -> Result<Self, ApiError> {
        fn symbol<T: Copy>(library: &libloading::Library, name: &str) -> Result<T, ApiError> {
            // SAFETY: the types of `Functions` are those of `nccl.h`; the library outlives them,
            // being in the same struct.
            let found = unsafe { library.get::<T>(name.as_bytes()) };
            found
                .map(|symbol| *symbol)
                .map_err(|_| ApiError::Unsupported(format!("libnccl.so.2 has no {name}: too old")))
        }
        Ok(Self {
            get_version: symbol(&library, "ncclGetVersion")?,
            get_unique_id: symbol(&library, "ncclGetUniqueId")?,
            init_rank_config: symbol(&library, "ncclCommInitRankConfig")?,
            get_async_error: symbol(&library, "ncclCommGetAsyncError")?,
            abort: symbol(&library, "ncclCommAbort")?,
            all_reduce: symbol(&library, "ncclAllReduce")?,
            all_gather: symbol(&library, "ncclAllGather")?,
            broadcast: symbol(&library, "ncclBroadcast")?,
            error_string: symbol(&library, "ncclGetErrorString")?,
            last_error: symbol(&library, "ncclGetLastError")?,
            _library: library,
        })
    }
}

/// `ncclDataType_t`.
const fn data_type(element: Element) -> c_int {
    match element {
        Element::U8 => 1,
        Element::U64 => 5,
        Element::F32 => 7,
    }
}

impl Api for Library {
    type Comm = NcclComm;

    fn version(&self) -> Result<u32, ApiError> {
        let mut version = 0;
        // SAFETY: writes one number.
        self.check(None, unsafe {
            (self.functions.get_version)(&raw mut version)
        })?;
        Ok(version.unsigned_abs())
    }

    fn unique_id(&self) -> Result<UniqueId, ApiError> {
        let mut id = Id([0; 128]);
        // SAFETY: writes one id.
        self.check(None, unsafe { (self.functions.get_unique_id)(&raw mut id) })?;
        Ok(id.0)
    }

    fn init(&self, place: Place, id: &UniqueId) -> Result<NcclComm, ApiError> {
        self.context.bind_to_thread().map_err(driver)?;
        // A stream of its own: kernels of the engine never wait behind a collective that waits for
        // another rank.
        let stream = self.context.new_stream().map_err(driver)?;
        let (mut raw, mut config) = (std::ptr::null_mut(), Config::non_blocking());
        let (size, rank) = (place.world_size as c_int, place.rank as c_int);
        // SAFETY: the context is current; `raw` and `config` are written and read before the call
        // returns.
        let result = unsafe {
            (self.functions.init_rank_config)(&raw mut raw, size, Id(*id), rank, &raw mut config)
        };
        self.check(None, result)?;
        Ok(NcclComm {
            raw,
            world_size: place.world_size,
            stream,
            call: Mutex::default(),
        })
    }

    fn start(&self, comm: &NcclComm, call: Call, data: &[u8]) -> Result<(), ApiError> {
        self.context.bind_to_thread().map_err(driver)?;
        let mut under_way = comm.call.lock().unwrap_or_else(PoisonError::into_inner);
        let UnderWay {
            send,
            receive,
            done,
            result,
        } = &mut *under_way;
        *done = None;
        let stream = &comm.stream;
        let send = Self::room(stream, send, data.len())?;
        stream
            .memcpy_htod(data, &mut send.slice_mut(..data.len()))
            .map_err(driver)?;
        let (from, _kept) = send.device_ptr_mut(stream);
        let (count, dtype) = (data.len() / call.element.bytes(), data_type(call.element));
        let (from, queue) = (from as *mut c_void, stream.cu_stream().cast());
        let functions = &self.functions;
        let status = match call.operation {
            // SAFETY: the buffer holds `count` elements, lives until the communicator is gone, and
            // is touched by this stream alone; the communicator is alive and used by one thread at
            // a time.
            Operation::AllReduce => unsafe {
                (functions.all_reduce)(from, from, count, dtype, SUM, comm.raw, queue)
            },
            // SAFETY: as above.
            Operation::Broadcast { root } => unsafe {
                (functions.broadcast)(from, from, count, dtype, root as c_int, comm.raw, queue)
            },
            Operation::AllGather => {
                let all = Self::room(stream, receive, data.len() * comm.world_size)?;
                let (into, _kept) = all.device_ptr_mut(stream);
                // SAFETY: as above; the second buffer has room for the elements of all ranks.
                unsafe {
                    (functions.all_gather)(from, into as *mut c_void, count, dtype, comm.raw, queue)
                }
            }
        };
        *result = Some(if call.operation == Operation::AllGather {
            Holder::InReceive
        } else {
            Holder::InSend
        });
        self.check(Some(comm.raw), status)
    }

    fn poll(&self, comm: &NcclComm) -> Result<bool, ApiError> {
        if !self.is_settled(comm.raw)? {
            return Ok(false);
        }
        let mut under_way = comm.call.lock().unwrap_or_else(PoisonError::into_inner);
        if under_way.result.is_none() {
            return Ok(true);
        }
        // Only now is the collective on the stream for certain.
        match &under_way.done {
            Some(done) => Ok(done.is_complete()),
            None => {
                under_way.done = Some(comm.stream.record_event(None).map_err(driver)?);
                Ok(false)
            }
        }
    }

    fn finish(&self, comm: &NcclComm, out: &mut [u8]) -> Result<(), ApiError> {
        self.context.bind_to_thread().map_err(driver)?;
        let under_way = comm.call.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = match under_way.result {
            Some(Holder::InReceive) => &under_way.receive,
            _ => &under_way.send,
        };
        let Some(buffer) = buffer else {
            return Err(ApiError::Usage("nothing was started".into()));
        };
        comm.stream
            .memcpy_dtoh(&buffer.slice(..out.len()), out)
            .map_err(driver)?;
        // Nothing but this copy is on the stream.
        comm.stream.synchronize().map_err(driver)
    }

    fn enqueue(&self, comm: &NcclComm, summand: &mut Summand<'_>) -> Result<(), ApiError> {
        let dtype = data_type(summand.element().into());
        let SumPlace::Stream {
            address,
            count,
            stream,
        } = summand.place()
        else {
            return Err(ApiError::Unsupported("NCCL sums what lies on a GPU".into()));
        };
        // Nothing of the calls before is asked for any more: from here on, `poll` is about this
        // call.
        let mut under_way = comm.call.lock().unwrap_or_else(PoisonError::into_inner);
        (under_way.result, under_way.done) = (None, None);
        let (array, queue) = (address as *mut c_void, stream as Stream);
        // SAFETY: by `Summand`, array and stream are alive and the stream's context is current; the
        // communicator is alive and used by one thread at a time.
        let status = unsafe {
            (self.functions.all_reduce)(array, array, count, dtype, SUM, comm.raw, queue)
        };
        self.check(Some(comm.raw), status)
    }

    fn abort(&self, comm: NcclComm) {
        // SAFETY: alive, and gone after this; no other thread is inside, for the caller owns it.
        let result = unsafe { (self.functions.abort)(comm.raw) };
        if let Err(error) = self.check(None, result) {
            tracing::warn!(%error, "ncclCommAbort");
        }
    }
}
