//! The data folder: a lock, and secrets in files that only their owner reads.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crm_tenant_registry::{MasterKey, SealError, new_secret};
use secrecy::{ExposeSecret as _, SecretString};

/// Why the data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another process has it.
    #[error("another crm runs with the data folder {}; --data-dir (CRM_DATA_DIR) names another folder", .0.display())]
    InUse(PathBuf),
    /// There is nothing in it yet.
    #[error("there is nothing in {}; `crm start` makes it", .0.display())]
    Empty(PathBuf),
    /// Others may read a secret.
    #[error("{} can be read by others; `chmod 600` it, and change the secret", .0.display())]
    Exposed(PathBuf),
    /// A secret that is none.
    #[error("{} is empty; without it, a new secret is made", .0.display())]
    NoSecret(PathBuf),
    /// A file cannot be read or written.
    #[error("{}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// A secret cannot be made or used.
    #[error("a secret in {} cannot be used", .0.display())]
    Secret(PathBuf, #[source] SealError),
}

/// A data folder.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
}

/// The secrets of a local installation.
#[derive(Clone, Debug)]
pub struct Secrets {
    /// Seals the secrets in the registry's database.
    pub master_key: MasterKey,
    /// The password of PostgreSQL's superuser.
    pub superuser: SecretString,
    /// The password of the registry's login.
    pub registry: SecretString,
    /// The secret of the local operator.
    pub operator: SecretString,
    /// The secret of the service contacts.
    pub contacts: SecretString,
    /// The secret of the service messaging.
    pub messaging: SecretString,
}

/// Keeps other processes out of a data folder for as long as it lives.
#[derive(Debug)]
pub struct DataLock(#[expect(dead_code, reason = "closing the file ends the lock")] File);

impl DataDir {
    /// Makes the folder where there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn create(path: &Path) -> Result<Self, DataError> {
        let failed = |error| DataError::Io(path.to_owned(), error);
        DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path.join("secrets"))
            .map_err(failed)?;
        Ok(Self { path })
    }

    /// Takes a folder that is there already.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        if !path.join("secrets").is_dir() {
            return Err(DataError::Empty(path.to_owned()));
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Keeps other processes out. Whoever can open the file can lock it: that is its owner alone.
    ///
    /// # Errors
    ///
    /// When another process has the folder.
    pub fn lock(&self) -> Result<DataLock, DataError> {
        let path = self.path.join("lock");
        let failed = |error| DataError::Io(path.clone(), error);
        let mut options = OpenOptions::new();
        let file = options.create(true).write(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(failed)?;
        // One that an earlier version made.
        file.set_permissions(Permissions::from_mode(0o600)).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(DataLock(file)),
            Err(TryLockError::WouldBlock) => Err(DataError::InUse(self.path.clone())),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }

    /// Whether a process has the folder.
    pub fn is_in_use(&self) -> bool {
        matches!(self.lock(), Err(DataError::InUse(_)))
    }

    /// Where the private PostgreSQL keeps its data.
    pub fn postgres(&self) -> PathBuf {
        self.path.join("postgres")
    }

    /// The secrets, made where they are missing.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or written, or can be read by others.
    pub fn secrets(&self) -> Result<Secrets, DataError> {
        let key = self.secret("master.key")?;
        let unusable = |error| DataError::Secret(self.path.join("secrets/master.key"), error);
        Ok(Secrets {
            master_key: MasterKey::parse(&key).map_err(unusable)?,
            superuser: self.secret("postgres.password")?,
            registry: self.secret("registry.password")?,
            operator: self.secret("operator.secret")?,
            contacts: self.secret("contacts.secret")?,
            messaging: self.secret("messaging.secret")?,
        })
    }

    fn secret(&self, name: &str) -> Result<SecretString, DataError> {
        let path = self.path.join("secrets").join(name);
        let failed = |error| DataError::Io(path.clone(), error);
        match fs::metadata(&path) {
            Ok(file) if file.permissions().mode() & 0o077 != 0 => Err(DataError::Exposed(path)),
            Ok(_) => {
                let text = fs::read_to_string(&path).map_err(failed)?;
                match text.trim() {
                    "" => Err(DataError::NoSecret(path)),
                    secret => Ok(secret.to_owned().into()),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = new_secret();
                let secret = made.map_err(|error| DataError::Secret(path.clone(), error))?;
                self.write(&path, &secret).map_err(failed)?;
                Ok(secret)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// A secret is whole in its file, or there is no file.
    fn write(&self, path: &Path, secret: &SecretString) -> io::Result<()> {
        let part = path.with_extension("part");
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&part)?;
        writeln!(file, "{}", secret.expose_secret())?;
        file.sync_all()?;
        fs::rename(part, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::scratch::Scratch;

    #[test]
    fn the_lock_can_be_taken_by_its_owner_alone() {
        let scratch = Scratch::new("lock");
        let (data, lock) = (DataDir::create(&scratch.0).unwrap(), scratch.0.join("lock"));
        let mode = || fs::metadata(&lock).unwrap().permissions().mode() & 0o777;

        drop(data.lock().unwrap());
        assert_eq!(mode(), 0o600);

        // As an earlier version left it.
        fs::set_permissions(&lock, Permissions::from_mode(0o644)).unwrap();
        let _lock = data.lock().unwrap();
        assert_eq!(mode(), 0o600);
        assert!(matches!(data.lock(), Err(DataError::InUse(_))));
    }
}
