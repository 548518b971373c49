//! The program `gatepost`: everything is in the library, so that tests and benches reach it too.

use std::process::ExitCode;

use clap::Parser;

/// Freed memory goes back sooner than with the system's allocator, and many threads do not queue for it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = gatepost::cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gatepost: cannot start its threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(gatepost::cli::run(cli));
    // What is still running by now has had its time; nothing it does could be acknowledged any more.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => gatepost::cli::explain(&error),
    }
}
