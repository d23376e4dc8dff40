//! The control plane: one pipeline every request passes, kinds as rows, controllers and scheduler as loops over it.

pub mod strategy;

pub mod registry;

pub mod pipeline;

pub mod verbs;

pub mod patch;

pub mod route;

pub mod negotiate;

pub mod http;

mod nonresource;

pub mod table;

pub mod encode;

pub mod discovery;

pub mod openapi;

pub mod proxy;

pub mod auth;

pub mod admission;

pub mod kinds;

pub mod validation;

pub mod alloc;

pub mod bootstrap;

pub mod controllers;

pub mod scheduler;
