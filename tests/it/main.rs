//! The one integration-test binary: every other file here is a module of it (`tidy` checks that none is forgotten).

mod cluster;

mod tour;

mod codec;

mod store;

mod runtime;

mod image;

mod net;

mod node;

mod pods;

mod api;

mod oracle;

mod sim;

mod cases;

mod tidy;
