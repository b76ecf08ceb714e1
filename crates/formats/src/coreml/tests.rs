//! Packages of Apple's converter, and models that lie.

use super::*;

#[test]
fn probe() {
    let root = Path::new("/work/shared/fixtures/coreml");
    let mut folders: Vec<_> = vec![];
    for dir in [root.to_path_buf(), root.join("compressed"), root.join("compressed/chunks_pal6")] {
        folders.extend(
            std::fs::read_dir(dir)
                .unwrap()
                .map(|e| e.unwrap().path())
                .filter(|p| p.extension().is_some_and(|e| e == "mlpackage")),
        );
    }
    for path in folders {
        let start = std::time::Instant::now();
        match read(&path) {
            Ok(model) => {
                let main = model.program.main().unwrap();
                let read = start.elapsed();
                mil::verify(main).unwrap();
                println!(
                    "{}: {} ops, {} inputs, {:?}, verify {:?} {:?}",
                    model.class,
                    main.ops().len(),
                    model.inputs.len(),
                    read,
                    start.elapsed() - read,
                    model.metadata
                );
            }
            Err(error) => println!("{error}"),
        }
    }
}
