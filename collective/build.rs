//! Builds the gloo shim, when it is asked for.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "gloo")]
    gloo();
}

#[cfg(feature = "gloo")]
fn gloo() {
    for file in ["gloo.rs", "gloo/shim.h", "gloo/shim.cc"] {
        println!("cargo:rerun-if-changed=src/{file}");
    }
    cxx_build::bridge("src/gloo.rs")
        .file("src/gloo/shim.cc")
        .std("c++17")
        .compile("palimpsest-gloo");
    println!("cargo:rustc-link-lib=gloo");
}
