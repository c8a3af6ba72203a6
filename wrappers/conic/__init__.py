"""What SCS's and Clarabel's cone programs share: projections, polishing, and derivatives."""
