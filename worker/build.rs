//! Builds the gloo shim, when it is asked for.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "gloo")]
    gloo();
}

#[cfg(feature = "gloo")]
fn gloo() {
    let dir = "src/collective/gloo";
    for file in ["mod.rs", "shim.h", "shim.cc"] {
        println!("cargo:rerun-if-changed={dir}/{file}");
    }
    cxx_build::bridge(format!("{dir}/mod.rs"))
        .file(format!("{dir}/shim.cc"))
        .std("c++17")
        .compile("palimpsest-gloo");
    println!("cargo:rustc-link-lib=gloo");
}
