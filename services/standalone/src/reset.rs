//! `crm reset`.

use std::error::Error;
use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;

use crate::cli::Options;
use crate::data::DataDir;
use crate::postgres::PrivatePostgres;

/// What has to be typed.
const CONFIRMATION: &str = "delete everything";

/// Deletes the data folder with everything in it: all tenants, and all keys.
///
/// # Errors
///
/// When it is not confirmed; when the folder is in use, or is none of ours;
/// when the data is in a PostgreSQL that is not ours.
pub(crate) async fn reset(
    options: Options,
    is_confirmed: bool,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    if options.database_url.is_some() {
        return Err("with CRM_DATABASE_URL (--database-url) the data is not in a local \
                    installation; reset deletes nothing there"
            .into());
    }
    let data = DataDir::open(&options.data_dir)?;
    let lock = data.lock()?;
    let folder = options.data_dir.canonicalize()?;
    if !is_confirmed && !confirm(&folder)? {
        return Err(format!("nothing was deleted in {}; --yes confirms", folder.display()).into());
    }
    PrivatePostgres::remove(&data.postgres(), &say).await?;
    for name in ["secrets", "lock"] {
        let path = folder.join(name);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    drop(lock);
    // What else is in it, nobody here put there.
    match fs::remove_dir(&folder) {
        Ok(()) => say(&format!("deleted {}", folder.display())),
        Err(error) => say(&format!("emptied {}, which stays: {error}", folder.display())),
    }
    Ok(())
}

fn confirm(folder: &Path) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    say(&format!(
        "This deletes {} with all tenants and all keys in it, for good.\n\
         Type \"{CONFIRMATION}\" to go on:",
        folder.display()
    ));
    let mut typed = String::new();
    io::stdin().read_line(&mut typed)?;
    Ok(typed.trim() == CONFIRMATION)
}

/// Progress goes to people, whatever the log.
fn say(text: &str) {
    // Where standard output is closed there is nobody to tell.
    let _told = writeln!(io::stdout(), "{text}");
}
