//! The environment variables that an engine is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustix::process::getuid;

/// What the engine will see. Names and values that are not UTF-8 are not in it; the engine inherits them all the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    pub fn of_this_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// As Python's `os.environ.get(NAME) or None`: a variable that is set to nothing counts as not set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A variable that names a directory, taken as it is: most libraries do not look for a `~` in it.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    /// As [`Environment::path`] for libraries that call `expanduser`: a leading `~` is the home directory.
    pub fn directory(&self, name: &str) -> Option<PathBuf> {
        let value = self.get(name)?;
        match value.strip_prefix('~') {
            Some("") => self.home(),
            Some(below) if below.starts_with('/') => Some(self.home()?.join(&below[1..])),
            _ => Some(value.into()),
        }
    }

    pub fn home(&self) -> Option<PathBuf> {
        self.path("HOME")
    }

    /// As Python's `tempfile.gettempdir()`, which would pass over a directory that it cannot write to.
    pub fn temporary(&self) -> PathBuf {
        ["TMPDIR", "TEMP", "TMP"].into_iter().find_map(|name| self.path(name)).unwrap_or_else(|| "/tmp".into())
    }

    /// As Python's `getpass.getuser()`: containers seldom set the variables, so the account of this process counts then.
    pub fn user(&self) -> Option<String> {
        let set = ["LOGNAME", "USER", "LNAME", "USERNAME"].into_iter().find_map(|name| self.get(name));
        set.map(str::to_owned).or_else(|| account(&std::fs::read_to_string("/etc/passwd").ok()?, getuid().as_raw()))
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), value.to_owned());
    }

    pub fn unset(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// In the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// The name of `uid` in the text of `/etc/passwd`, see passwd(5).
fn account(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid.to_string()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_tilde_is_the_home_directory_only_where_the_library_expands_it() {
        let environment =
            environment(&[("HOME", "/home/u"), ("A", "~/cache"), ("B", "~"), ("C", "~other/x"), ("D", "")]);
        assert_eq!(environment.path("A"), Some("~/cache".into()));
        assert_eq!(environment.directory("A"), Some("/home/u/cache".into()));
        assert_eq!(environment.directory("B"), Some("/home/u".into()));
        assert_eq!(environment.directory("C"), Some("~other/x".into()));
        assert_eq!(environment.directory("D"), None);
    }

    #[test]
    fn temporary_directory_and_user_follow_pythons_order() {
        assert_eq!(Environment::default().temporary(), PathBuf::from("/tmp"));
        let both = environment(&[("TMP", "/a"), ("TMPDIR", "/b"), ("USER", "u"), ("LOGNAME", "l")]);
        assert_eq!((both.temporary(), both.user()), ("/b".into(), Some("l".to_owned())));
    }

    #[test]
    fn an_account_is_found_by_its_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nengine:x:1000:100::/home/engine:/bin/sh\n";
        assert_eq!(account(passwd, 1000).as_deref(), Some("engine"));
        assert_eq!(account(passwd, 100), None);
    }
}
