//! Arguments of kernels, and addresses that know what lies there.

use std::marker::PhantomData;

use crate::shapes::KvType;

/// Marks an address as a place in the descriptors of the call or of its step. No device has such
/// addresses. The place becomes an address when the launch starts.
pub(crate) const DESCRIPTORS: u64 = 1 << 63;
/// The beginning of the descriptors' tail.
pub(crate) const TAIL: u64 = DESCRIPTORS | 1 << 62;

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// Address on the device, 0 for none.
    Pointer(u64),
    /// 32-bit unsigned.
    U32(u32),
    /// 64-bit unsigned.
    U64(u64),
    /// Single.
    F32(f32),
}

impl PartialEq for Arg {
    /// Whether a kernel that takes an argument of this type reads the same bits.
    fn eq(&self, other: &Self) -> bool {
        self.word() == other.word()
    }
}

impl Arg {
    /// The argument's bytes, first in an eight-byte word.
    pub(crate) fn word(self) -> u64 {
        let narrow = |bits: u32| {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&bits.to_ne_bytes());
            u64::from_ne_bytes(bytes)
        };
        match self {
            Self::Pointer(address) => address,
            Self::U64(value) => value,
            Self::U32(value) => narrow(value),
            Self::F32(value) => narrow(value.to_bits()),
        }
    }
}

/// A type that a kernel takes as an argument.
pub(crate) trait Argument: Copy {
    /// The argument.
    fn arg(self) -> Arg;
}

impl Argument for u32 {
    fn arg(self) -> Arg {
        Arg::U32(self)
    }
}

impl Argument for u64 {
    fn arg(self) -> Arg {
        Arg::U64(self)
    }
}

impl Argument for f32 {
    fn arg(self) -> Arg {
        Arg::F32(self)
    }
}

/// A kernel takes it as a `uint32_t` of 0 or 1.
impl Argument for bool {
    fn arg(self) -> Arg {
        Arg::U32(u32::from(self))
    }
}

/// Address of values that a kernel reads: `const T *`.
pub(crate) struct Ptr<T> {
    address: u64,
    values: PhantomData<fn() -> T>,
}

/// Address of values that a kernel writes: `T *`.
pub(crate) struct PtrMut<T> {
    address: u64,
    values: PhantomData<fn() -> T>,
}

macro_rules! pointer {
    ($pointer:ident) => {
        impl<T> Clone for $pointer<T> {
            fn clone(&self) -> Self {
                *self
            }
        }

        impl<T> Copy for $pointer<T> {}

        impl<T> Argument for $pointer<T> {
            fn arg(self) -> Arg {
                Arg::Pointer(self.address)
            }
        }

        impl<T> $pointer<T> {
            /// The values at `address` of the device.
            pub(crate) fn at(address: u64) -> Self {
                Self {
                    address,
                    values: PhantomData,
                }
            }

            /// The address, for libraries that work on device memory.
            pub(crate) fn address(self) -> u64 {
                self.address
            }

            /// These bytes as values of another type.
            pub(crate) fn cast<U>(self) -> $pointer<U> {
                $pointer::at(self.address)
            }

            /// The values from number `count` on.
            pub(crate) fn skip(self, count: usize) -> Self {
                Self::at(self.address + (count * size_of::<T>()) as u64)
            }
        }
    };
}

pointer!(Ptr);
pointer!(PtrMut);

impl<T> Ptr<T> {
    /// No values.
    pub(crate) const NULL: Self = Self {
        address: 0,
        values: PhantomData,
    };

    /// Values of the descriptors, from byte `place` on.
    pub(crate) fn in_descriptors(place: usize) -> Self {
        Self::at(DESCRIPTORS | place as u64)
    }
}

impl<T> PtrMut<T> {
    /// These values for a kernel that only reads them.
    pub(crate) fn read(self) -> Ptr<T> {
        Ptr::at(self.address)
    }
}

/// A bfloat16, `bf16_t`.
#[derive(Clone, Copy)]
pub(crate) struct Bf16(#[allow(dead_code, reason = "gives the size")] u16);

/// Bytes of a type that another argument names, `void`.
pub(crate) enum Void {}

/// An element of a cached key or value: `T` of the kernels' templates, of which there is one
/// function for each [`KvType`].
pub(crate) enum Element {}

/// Address of the first page of an arena that a kernel reads: `const T *`.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    pub(crate) pages: Ptr<Element>,
    /// What `T` is.
    pub(crate) dtype: KvType,
}

/// Address of the first page of an arena that a kernel writes: `T *`.
#[derive(Clone, Copy)]
pub(crate) struct SlotsMut {
    pub(crate) pages: PtrMut<Element>,
    /// What `T` is.
    pub(crate) dtype: KvType,
}

impl Argument for Slots {
    fn arg(self) -> Arg {
        self.pages.arg()
    }
}

impl Argument for SlotsMut {
    fn arg(self) -> Arg {
        self.pages.arg()
    }
}
