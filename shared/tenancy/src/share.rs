//! What a tenant has of the sessions.

/// How much the work reads that a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    Small,
    /// Many rows. Tenants that are over their share do little of it at once.
    Large,
}

/// What a tenant has of the pool, idle sessions aside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Sessions that work, open or close.
    pub(crate) in_use: usize,
    /// Those of them whose work is large.
    pub(crate) large: usize,
    pub(crate) waiting: usize,
    /// Those of them whose work is large.
    pub(crate) waiting_large: usize,
    /// Whether a session is opening: one at a time for each tenant.
    pub(crate) is_opening: bool,
    /// When it last got its turn for large work while over its share.
    pub(crate) turn: u64,
}

impl Share {
    /// A session works for the tenant.
    pub(crate) fn begin(&mut self, size: Size) {
        self.in_use += 1;
        self.large += usize::from(size == Size::Large);
    }

    /// It works no more.
    pub(crate) fn end(&mut self, size: Size) {
        self.in_use -= 1;
        self.large -= usize::from(size == Size::Large);
    }

    /// A caller queues.
    pub(crate) fn queue(&mut self, size: Size) {
        self.waiting += 1;
        self.waiting_large += usize::from(size == Size::Large);
    }

    /// It queues no more.
    pub(crate) fn leave(&mut self, size: Size) {
        self.waiting -= 1;
        self.waiting_large -= usize::from(size == Size::Large);
    }

    /// How many callers queue with work of this size.
    pub(crate) fn waiting(&self, size: Size) -> usize {
        match size {
            Size::Small => self.waiting - self.waiting_large,
            Size::Large => self.waiting_large,
        }
    }

    /// Whether the tenant has nothing of the pool.
    pub(crate) fn is_empty(&self) -> bool {
        self.in_use == 0 && self.waiting == 0 && !self.is_opening
    }
}

/// How many sessions there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) in_use: usize,
    pub(crate) idle: usize,
    pub(crate) waiting: usize,
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            in_use: self.in_use + other.in_use,
            idle: self.idle + other.idle,
            waiting: self.waiting + other.waiting,
        }
    }
}
