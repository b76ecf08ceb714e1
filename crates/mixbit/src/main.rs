//! The `mixbit` command.

fn main() -> std::process::ExitCode {
    mixbit::cli::main()
}
