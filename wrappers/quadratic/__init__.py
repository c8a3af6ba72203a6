"""What OSQP's and Clarabel's quadratic programs share: polishing, linearising, and the verdict."""
